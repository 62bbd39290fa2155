// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"reflect"
	"slices"

	apps "k8s.io/api/apps/v1"
	coordination "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	events "k8s.io/api/events/v1"
	networking "k8s.io/api/networking/v1"
	rbac "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
)

// kind is one of the served kinds. What it says is what the registry of a kube-apiserver says.
type kind struct {
	version    schema.GroupVersion
	name       string
	plural     string
	singular   string
	short      []string
	namespaced bool
	status     bool
	object     runtime.Object
	list       runtime.Object
	nameRule   validation.ValidateNameFunc
	// What field selectors may ask for besides metadata.name and metadata.namespace.
	fields func(runtime.Object) fields.Set
}

var (
	scheme = runtime.NewScheme()
	codecs = serializer.NewCodecFactory(scheme)
	groups = []schema.GroupVersion{core.SchemeGroupVersion, apps.SchemeGroupVersion, coordination.SchemeGroupVersion,
		discovery.SchemeGroupVersion, events.SchemeGroupVersion, networking.SchemeGroupVersion, rbac.SchemeGroupVersion}
	subname  = validation.NameIsDNSSubdomain
	nsname   = validation.ValidateNamespaceName
	svcname  = validation.NameIsDNS1035Label
	nofields = func(runtime.Object) fields.Set { return fields.Set{} }
)

var kinds = []kind{
	{core.SchemeGroupVersion, "Namespace", "namespaces", "namespace", []string{"ns"}, false, true,
		&core.Namespace{}, &core.NamespaceList{}, nsname, func(o runtime.Object) fields.Set {
			return fields.Set{"status.phase": string(o.(*core.Namespace).Status.Phase)}
		}},
	{core.SchemeGroupVersion, "Node", "nodes", "node", []string{"no"}, false, true,
		&core.Node{}, &core.NodeList{}, subname, func(o runtime.Object) fields.Set {
			return fields.Set{"spec.unschedulable": fmt.Sprint(o.(*core.Node).Spec.Unschedulable)}
		}},
	{core.SchemeGroupVersion, "Pod", "pods", "pod", []string{"po"}, true, true,
		&core.Pod{}, &core.PodList{}, subname, podFields},
	{core.SchemeGroupVersion, "Service", "services", "service", []string{"svc"}, true, true,
		&core.Service{}, &core.ServiceList{}, svcname, func(o runtime.Object) fields.Set {
			spec := o.(*core.Service).Spec
			return fields.Set{"spec.clusterIP": spec.ClusterIP, "spec.type": string(spec.Type)}
		}},
	{core.SchemeGroupVersion, "ServiceAccount", "serviceaccounts", "serviceaccount", []string{"sa"}, true, false,
		&core.ServiceAccount{}, &core.ServiceAccountList{}, subname, nofields},
	{core.SchemeGroupVersion, "ConfigMap", "configmaps", "configmap", []string{"cm"}, true, false,
		&core.ConfigMap{}, &core.ConfigMapList{}, subname, nofields},
	{core.SchemeGroupVersion, "Event", "events", "event", []string{"ev"}, true, false,
		&core.Event{}, &core.EventList{}, anyName, eventFields},
	{networking.SchemeGroupVersion, "NetworkPolicy", "networkpolicies", "networkpolicy", []string{"netpol"}, true, false,
		&networking.NetworkPolicy{}, &networking.NetworkPolicyList{}, subname, nofields},
	{discovery.SchemeGroupVersion, "EndpointSlice", "endpointslices", "endpointslice", nil, true, false,
		&discovery.EndpointSlice{}, &discovery.EndpointSliceList{}, subname, nofields},
	{coordination.SchemeGroupVersion, "Lease", "leases", "lease", nil, true, false,
		&coordination.Lease{}, &coordination.LeaseList{}, subname, nofields},
	{apps.SchemeGroupVersion, "DaemonSet", "daemonsets", "daemonset", []string{"ds"}, true, true,
		&apps.DaemonSet{}, &apps.DaemonSetList{}, subname, nofields},
	{rbac.SchemeGroupVersion, "ClusterRole", "clusterroles", "clusterrole", nil, false, false,
		&rbac.ClusterRole{}, &rbac.ClusterRoleList{}, anyName, nofields},
	{rbac.SchemeGroupVersion, "ClusterRoleBinding", "clusterrolebindings", "clusterrolebinding", nil, false, false,
		&rbac.ClusterRoleBinding{}, &rbac.ClusterRoleBindingList{}, anyName, nofields},
	{rbac.SchemeGroupVersion, "Role", "roles", "role", nil, true, false,
		&rbac.Role{}, &rbac.RoleList{}, anyName, nofields},
	{rbac.SchemeGroupVersion, "RoleBinding", "rolebindings", "rolebinding", nil, true, false,
		&rbac.RoleBinding{}, &rbac.RoleBindingList{}, anyName, nofields},
}

func anyName(string, bool) []string { return nil }

func podFields(o runtime.Object) fields.Set {
	pod := o.(*core.Pod)
	ip := pod.Status.PodIP
	if len(pod.Status.PodIPs) > 0 {
		ip = pod.Status.PodIPs[0].IP
	}
	return fields.Set{
		"spec.nodeName":            pod.Spec.NodeName,
		"spec.restartPolicy":       string(pod.Spec.RestartPolicy),
		"spec.schedulerName":       pod.Spec.SchedulerName,
		"spec.serviceAccountName":  pod.Spec.ServiceAccountName,
		"spec.hostNetwork":         fmt.Sprint(pod.Spec.HostNetwork),
		"status.phase":             string(pod.Status.Phase),
		"status.podIP":             ip,
		"status.nominatedNodeName": pod.Status.NominatedNodeName,
	}
}

func init() {
	meta.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	for _, add := range []func(*runtime.Scheme) error{core.AddToScheme, apps.AddToScheme, coordination.AddToScheme,
		discovery.AddToScheme, events.AddToScheme, networking.AddToScheme, rbac.AddToScheme} {
		utilruntime.Must(add(scheme))
	}
	for _, version := range groups {
		utilruntime.Must(scheme.SetVersionPriority(version))
	}
	// The types of v1 are the internal ones, too: there is no other version to convert to.
	for _, k := range kinds {
		internal := schema.GroupVersion{Group: k.version.Group, Version: runtime.APIVersionInternal}
		scheme.AddKnownTypeWithName(internal.WithKind(k.name), k.object)
		scheme.AddKnownTypeWithName(internal.WithKind(k.name+"List"), k.list)
		utilruntime.Must(addFieldLabels(k.version.WithKind(k.name), k))
	}
	utilruntime.Must(addEvents())
	scheme.AddTypeDefaultingFunc(&networking.NetworkPolicy{}, func(o any) { defaultPolicy(o.(*networking.NetworkPolicy)) })
	scheme.AddTypeDefaultingFunc(&networking.NetworkPolicyList{}, func(o any) {
		items := o.(*networking.NetworkPolicyList).Items
		for i := range items {
			defaultPolicy(&items[i])
		}
	})
}

// addFieldLabels says which field selectors are known; others are refused, as by a kube-apiserver.
func addFieldLabels(gvk schema.GroupVersionKind, k kind) error {
	known := []string{"metadata.name"}
	if k.namespaced {
		known = append(known, "metadata.namespace")
	}
	for name := range k.fields(reflect.New(reflect.TypeOf(k.object).Elem()).Interface().(runtime.Object)) {
		known = append(known, name)
	}
	return scheme.AddFieldLabelConversionFunc(gvk, func(label, value string) (string, string, error) {
		if slices.Contains(known, label) {
			return label, value, nil
		}
		return "", "", fmt.Errorf("field label not supported: %s", label)
	})
}

// defaultPolicy fills in what pkg/apis/networking/v1 of Kubernetes does.
func defaultPolicy(policy *networking.NetworkPolicy) {
	tcp := core.ProtocolTCP
	for _, rule := range policy.Spec.Ingress {
		for i := range rule.Ports {
			if rule.Ports[i].Protocol == nil {
				rule.Ports[i].Protocol = &tcp
			}
		}
	}
	for _, rule := range policy.Spec.Egress {
		for i := range rule.Ports {
			if rule.Ports[i].Protocol == nil {
				rule.Ports[i].Protocol = &tcp
			}
		}
	}
	if len(policy.Spec.PolicyTypes) == 0 {
		policy.Spec.PolicyTypes = []networking.PolicyType{networking.PolicyTypeIngress}
		if len(policy.Spec.Egress) != 0 {
			policy.Spec.PolicyTypes = append(policy.Spec.PolicyTypes, networking.PolicyTypeEgress)
		}
	}
}
