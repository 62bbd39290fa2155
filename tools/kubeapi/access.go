// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"

	rbac "k8s.io/api/rbac/v1"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// access is what the file says: who bears which token, and what each may do. It is read anew for
// each request. Without tokens of others than tests, everybody may do everything.
type access struct {
	Tokens map[string]string      `json:"tokens"`
	Rules  map[string][]placeRule `json:"rules"` // of users; one that is not here may do everything
	Denied []denial               `json:"denied"`
}

// placeRule is a rule of a ClusterRole; with namespaces, one of a Role in each of them.
type placeRule struct {
	rbac.PolicyRule
	Namespaces []string `json:"namespaces"`
}

// denial is what a user may not do whatever the rules say; "*" is all.
type denial struct{ User, Verb, Resource, Namespace string }

// accessFile is the path, and both an authenticator of tokens and an authorizer.
type accessFile string

func (f accessFile) read() (access, error) {
	var found access
	if f == "" {
		return found, nil
	}
	data, err := os.ReadFile(string(f))
	if err != nil {
		return found, err
	}
	return found, json.Unmarshal(data, &found)
}

func (f accessFile) AuthenticateToken(_ context.Context, token string) (*authenticator.Response, bool, error) {
	found, err := f.read()
	if err != nil {
		return nil, false, err
	}
	name, known := found.Tokens[token]
	if !known {
		return nil, false, nil
	}
	return &authenticator.Response{User: &user.DefaultInfo{Name: name}}, true, nil
}

func (f accessFile) Authorize(_ context.Context, asked authorizer.Attributes) (authorizer.Decision, string, error) {
	found, err := f.read()
	if err != nil {
		return authorizer.DecisionNoOpinion, "", err
	}
	name := asked.GetUser().GetName()
	if !asked.IsResourceRequest() {
		public := slices.Contains([]string{"/healthz", "/livez", "/readyz", "/version"}, asked.GetPath())
		if public || name != user.Anonymous || f.open(found) {
			return authorizer.DecisionAllow, "", nil
		}
		return authorizer.DecisionNoOpinion, "", nil
	}
	for _, one := range found.Denied {
		if one.hits(name, asked) {
			return authorizer.DecisionNoOpinion, "", nil
		}
	}
	if name == user.Anonymous && !f.open(found) {
		return authorizer.DecisionNoOpinion, "", nil
	}
	rules, bound := found.Rules[name]
	if !bound || slices.ContainsFunc(rules, func(rule placeRule) bool { return rule.grants(asked) }) {
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionNoOpinion, "", nil
}

// open tells whether only tests themselves have tokens: then there is nobody to be kept out.
func (f accessFile) open(found access) bool {
	for _, name := range found.Tokens {
		if !strings.HasPrefix(name, ours) {
			return false
		}
	}
	return true
}

func (d denial) hits(name string, asked authorizer.Attributes) bool {
	pairs := [][2]string{{d.User, name}, {d.Verb, asked.GetVerb()}, {d.Resource, resource(asked)},
		{d.Namespace, asked.GetNamespace()}}
	return !slices.ContainsFunc(pairs, func(pair [2]string) bool { return pair[0] != "*" && pair[0] != pair[1] })
}

// grants is how the RBAC authorizer of a kube-apiserver reads a rule.
func (r placeRule) grants(asked authorizer.Attributes) bool {
	has := func(all []string, wanted string) bool {
		return slices.Contains(all, "*") || slices.Contains(all, wanted)
	}
	resources := has(r.Resources, resource(asked)) ||
		asked.GetSubresource() != "" && slices.Contains(r.Resources, "*/"+asked.GetSubresource())
	return has(r.Verbs, asked.GetVerb()) && has(r.APIGroups, asked.GetAPIGroup()) && resources &&
		(len(r.ResourceNames) == 0 || slices.Contains(r.ResourceNames, asked.GetName())) &&
		(len(r.Namespaces) == 0 || slices.Contains(r.Namespaces, asked.GetNamespace()))
}

func resource(asked authorizer.Attributes) string {
	return strings.TrimSuffix(asked.GetResource()+"/"+asked.GetSubresource(), "/")
}
