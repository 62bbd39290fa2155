// SPDX-License-Identifier: Apache-2.0

// Command kubeapi is an API server made of Kubernetes' own libraries: the generic API server with
// its storage in etcd, and the one of CustomResourceDefinitions. Its registries of core kinds are
// reduced: they check metadata, and nothing of what is in a spec. It is no kube-apiserver.
package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"bristle.io/kubeapi/models"
	"github.com/spf13/pflag"
	noop "go.opentelemetry.io/otel/trace/noop"
	core "k8s.io/api/core/v1"
	events "k8s.io/api/events/v1"
	crds "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	extensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	extensionsoptions "k8s.io/apiextensions-apiserver/pkg/cmd/server/options"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/admission/plugin/namespace/lifecycle"
	"k8s.io/apiserver/pkg/authentication/group"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	authorizers "k8s.io/apiserver/pkg/authorization/union"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	"k8s.io/apiserver/pkg/endpoints/filters"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/apiserver/pkg/util/notfoundhandler"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/kube-openapi/pkg/builder3"
	"k8s.io/kube-openapi/pkg/common/restfuladapter"
	"net/url"
)

// settings are the command line: the options of the libraries, and ours.
type settings struct {
	run    *options.ServerRunOptions
	etcd   *options.EtcdOptions
	secure *options.SecureServingOptionsWithLoopback
	audit  *options.AuditOptions
	access string
}

func main() {
	s := settings{
		run:    options.NewServerRunOptions(),
		etcd:   options.NewEtcdOptions(storagebackend.NewDefaultConfig("/registry", codecs.LegacyCodec(groups...))),
		secure: options.NewSecureServingOptions().WithLoopback(),
		audit:  options.NewAuditOptions(),
	}
	flags := pflag.NewFlagSet("kubeapi", pflag.ExitOnError)
	s.run.AddUniversalFlags(flags)
	s.etcd.AddFlags(flags)
	s.secure.AddFlags(flags)
	s.audit.AddFlags(flags)
	flags.StringVar(&s.access, "access-file", "", "tokens and rules, as JSON")
	_ = flags.Parse(os.Args[1:])
	if err := s.serve(server.SetupSignalContext()); err != nil {
		fmt.Fprintln(os.Stderr, "kubeapi:", err)
		os.Exit(1)
	}
}

// config is what both servers share.
func (s settings) config(codecsOf *server.RecommendedConfig, manager aggregated.ResourceManager) error {
	c := &codecsOf.Config
	if err := s.run.ApplyTo(c); err != nil {
		return err
	}
	if err := s.secure.ApplyToConfig(c); err != nil {
		return err
	}
	if err := s.audit.ApplyTo(c); err != nil {
		return err
	}
	file := accessFile(s.access)
	c.Authentication.Authenticator = union.NewFailOnError(
		group.NewAuthenticatedGroupAdder(bearertoken.New(file)), anonymous.NewAuthenticator(nil))
	c.Authorization.Authorizer = authorizers.New(authorizerfactory.NewPrivilegedGroups("system:masters"), file)
	namer := openapinamer.NewDefinitionNamer(scheme, extensions.Scheme, clientscheme.Scheme)
	c.OpenAPIConfig = server.DefaultOpenAPIConfig(models.GetOpenAPIDefinitions, namer)
	c.OpenAPIV3Config = server.DefaultOpenAPIV3Config(models.GetOpenAPIDefinitions, namer)
	c.AggregatedDiscoveryGroupManager = manager
	return nil
}

func (s settings) serve(ctx context.Context) error {
	if err := s.run.ComponentGlobalsRegistry.Set(); err != nil {
		return err
	}
	if err := s.run.Complete(); err != nil {
		return err
	}
	if err := s.secure.MaybeDefaultWithSelfSignedCerts("localhost", nil, []net.IP{net.IPv4(127, 0, 0, 1)}); err != nil {
		return err
	}
	manager := aggregated.NewResourceManager("apis")
	generic := server.NewRecommendedConfig(codecs)
	if err := s.config(generic, manager); err != nil {
		return err
	}
	if err := s.etcd.ApplyTo(&generic.Config); err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(generic.LoopbackClientConfig)
	if err != nil {
		return err
	}
	generic.SharedInformerFactory = informers.NewSharedInformerFactory(client, 0)
	plugin, err := lifecycle.NewLifecycle(sets.New(meta.NamespaceDefault, meta.NamespaceSystem, meta.NamespacePublic))
	if err != nil {
		return err
	}
	initializer.New(client, nil, generic.SharedInformerFactory, generic.Authorization.Authorizer,
		utilfeature.DefaultFeatureGate, generic.EffectiveVersion, ctx.Done(), nil).Initialize(plugin)
	generic.AdmissionControl = guarded{plugin}

	custom, err := s.custom(generic, manager)
	if err != nil {
		return err
	}
	top, err := generic.Complete().New("kubeapi", custom.GenericAPIServer)
	if err != nil {
		return err
	}
	if err := install(top, generic); err != nil {
		return err
	}
	top.AddPostStartHookOrDie("namespaces", func(hook server.PostStartHookContext) error {
		return systemNamespaces(hook, client)
	})
	prepared := top.PrepareRun()
	// One description of the API for both, as the aggregator of a kube-apiserver makes it.
	services := custom.GenericAPIServer.Handler.GoRestfulContainer.RegisteredWebServices()
	for i := range services {
		spec, err := builder3.BuildOpenAPISpecFromRoutes(
			restfuladapter.AdaptWebServices(services[i:i+1]), generic.OpenAPIV3Config)
		if err != nil {
			return err
		}
		top.OpenAPIV3VersionedService.UpdateGroupVersion(services[i].RootPath()[1:], spec)
	}
	custom.GenericAPIServer.StaticOpenAPISpec = top.StaticOpenAPISpec
	custom.GenericAPIServer.OpenAPIVersionedService = top.OpenAPIVersionedService
	custom.GenericAPIServer.OpenAPIV3VersionedService = top.OpenAPIV3VersionedService
	return prepared.RunWithContext(ctx)
}

// custom makes the server of CustomResourceDefinitions and of what they define.
func (s settings) custom(generic *server.RecommendedConfig, manager aggregated.ResourceManager) (*extensions.CustomResourceDefinitions, error) {
	own := server.NewRecommendedConfig(extensions.Codecs)
	if err := s.config(own, manager); err != nil {
		return nil, err
	}
	own.LoopbackClientConfig = generic.LoopbackClientConfig
	own.SecureServing = generic.SecureServing
	own.AdmissionControl = generic.AdmissionControl
	own.SharedInformerFactory = generic.SharedInformerFactory
	own.MergedResourceConfig = extensions.DefaultAPIResourceConfigSource()
	etcd := *s.etcd
	etcd.SkipHealthEndpoints = true
	etcd.StorageConfig.Codec = extensions.Codecs.LegacyCodec(crds.SchemeGroupVersion)
	if err := etcd.ApplyTo(&own.Config); err != nil {
		return nil, err
	}
	config := extensions.Config{
		GenericConfig: own,
		ExtraConfig: extensions.ExtraConfig{
			CRDRESTOptionsGetter: extensionsoptions.NewCRDRESTOptionsGetter(etcd, own.ResourceTransformers, own.StorageObjectCountTracker),
			MasterCount:          1,
			AuthResolverWrapper:  webhook.NewDefaultAuthenticationInfoResolverWrapper(nil, nil, own.LoopbackClientConfig, noop.NewTracerProvider()),
			ServiceResolver:      resolver{own.SharedInformerFactory.Core().V1().Services().Lister()},
		},
	}
	missing := notfoundhandler.New(generic.Serializer, filters.NoMuxAndDiscoveryIncompleteKey)
	return config.Complete().New(server.NewEmptyDelegateWithCustomHandler(missing))
}

// install adds the core kinds; Event twice, from one storage.
func install(top *server.GenericAPIServer, generic *server.RecommendedConfig) error {
	all := map[schema.GroupVersion]map[string]rest.Storage{}
	for _, k := range kinds {
		made, err := stores(k, generic.RESTOptionsGetter)
		if err != nil {
			return err
		}
		if all[k.version] == nil {
			all[k.version] = map[string]rest.Storage{}
		}
		for path, one := range made {
			all[k.version][path] = one
		}
	}
	all[events.SchemeGroupVersion] = map[string]rest.Storage{"events": all[core.SchemeGroupVersion]["events"]}
	for _, version := range groups {
		info := server.NewDefaultAPIGroupInfo(version.Group, scheme, meta.ParameterCodec, codecs)
		info.VersionedResourcesStorageMap[version.Version] = all[version]
		var err error
		if version.Group == "" {
			err = top.InstallLegacyAPIGroup(server.DefaultLegacyAPIPrefix, &info)
		} else {
			err = top.InstallAPIGroup(&info)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// guarded is the admission plugin, which does not hold for the loader.
type guarded struct{ *lifecycle.Lifecycle }

func (g guarded) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	if a.GetUserInfo().GetName() == loader {
		return nil
	}
	return g.Lifecycle.Admit(ctx, a, o)
}

type resolver struct{ services corelisters.ServiceLister }

func (r resolver) ResolveEndpoint(namespace, name string, port int32) (*url.URL, error) {
	return proxy.ResolveCluster(r.services, namespace, name, port)
}

// systemNamespaces makes those that every cluster has.
func systemNamespaces(ctx context.Context, client kubernetes.Interface) error {
	names := []string{meta.NamespaceDefault, meta.NamespaceSystem, meta.NamespacePublic, core.NamespaceNodeLease}
	for _, name := range names {
		one := &core.Namespace{ObjectMeta: meta.ObjectMeta{Name: name}}
		_, err := client.CoreV1().Namespaces().Create(ctx, one, meta.CreateOptions{})
		if err != nil && !errors.IsAlreadyExists(err) {
			return err
		}
	}
	return nil
}
