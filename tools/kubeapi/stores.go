// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"reflect"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/names"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// strategy is what a registry of a kube-apiserver has one of for each kind, reduced to metadata,
// status, and the ways in which the kinds differ for whoever watches and writes them.
type strategy struct {
	runtime.ObjectTyper
	names.NameGenerator
	kind kind
}

func (s strategy) NamespaceScoped() bool                                     { return s.kind.namespaced }
func (s strategy) AllowCreateOnUpdate() bool                                 { return s.kind.name == "Lease" || s.kind.name == "Event" }
func (s strategy) AllowUnconditionalUpdate() bool                            { return s.kind.name != "Lease" }
func (s strategy) Canonicalize(runtime.Object)                               {}
func (s strategy) WarningsOnCreate(context.Context, runtime.Object) []string { return nil }
func (s strategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}

func (s strategy) PrepareForCreate(ctx context.Context, obj runtime.Object) {
	if s.kind.status && !loads(ctx) {
		part(obj, "Status").SetZero()
	}
	switch one := obj.(type) {
	case *core.Pod:
		if one.Status.Phase == "" {
			one.Status.Phase = core.PodPending
		}
	case *core.Namespace:
		one.Status.Phase = core.NamespaceActive
		one.Labels = withLabel(one.Labels, core.LabelMetadataName, one.Name)
	}
	if s.kind.name == "NetworkPolicy" {
		accessor, _ := meta.Accessor(obj)
		accessor.SetGeneration(1)
	}
}

func (s strategy) PrepareForUpdate(ctx context.Context, obj, old runtime.Object) {
	if s.kind.status && !loads(ctx) {
		part(obj, "Status").Set(part(old, "Status"))
	}
	if s.kind.name == "NetworkPolicy" && !equality.Semantic.DeepEqual(
		part(obj, "Spec").Interface(), part(old, "Spec").Interface()) {
		accessor, _ := meta.Accessor(obj)
		before, _ := meta.Accessor(old)
		accessor.SetGeneration(before.GetGeneration() + 1)
	}
	if one, is := obj.(*core.Namespace); is {
		one.Labels = withLabel(one.Labels, core.LabelMetadataName, one.Name)
	}
}

func (s strategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	accessor, _ := meta.Accessor(obj)
	found := validation.ValidateObjectMetaAccessor(accessor, s.kind.namespaced, s.kind.nameRule, field.NewPath("metadata"))
	if event, is := obj.(*core.Event); is {
		found = append(found, checkEvent(event)...)
	}
	return found
}

func (s strategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	accessor, _ := meta.Accessor(obj)
	before, _ := meta.Accessor(old)
	return validation.ValidateObjectMetaAccessorUpdate(accessor, before, field.NewPath("metadata"))
}

func (s strategy) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	if !s.kind.status {
		return nil
	}
	set := fieldpath.NewSet(fieldpath.MakePathOrDie("status"))
	return map[fieldpath.APIVersion]*fieldpath.Set{fieldpath.APIVersion(s.kind.version.String()): set}
}

// CheckGracefulDelete lets a pod that runs on a node stay until its kubelet has ended it.
func (s strategy) CheckGracefulDelete(_ context.Context, obj runtime.Object, options *metav1.DeleteOptions) bool {
	pod, is := obj.(*core.Pod)
	if !is {
		return false
	}
	period := int64(30)
	if pod.Spec.TerminationGracePeriodSeconds != nil {
		period = *pod.Spec.TerminationGracePeriodSeconds
	}
	if options.GracePeriodSeconds != nil {
		period = *options.GracePeriodSeconds
	}
	if pod.Spec.NodeName == "" || pod.Status.Phase == core.PodFailed || pod.Status.Phase == core.PodSucceeded {
		period = 0
	}
	options.GracePeriodSeconds = &period
	return true
}

// statusStrategy is that of the subresource status.
type statusStrategy struct{ strategy }

func (s statusStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	part(obj, "Spec").Set(part(old, "Spec"))
	accessor, _ := meta.Accessor(obj)
	before, _ := meta.Accessor(old)
	accessor.SetDeletionTimestamp(before.GetDeletionTimestamp())
	accessor.SetOwnerReferences(before.GetOwnerReferences())
}

func (s statusStrategy) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	set := fieldpath.NewSet(fieldpath.MakePathOrDie("spec"))
	return map[fieldpath.APIVersion]*fieldpath.Set{fieldpath.APIVersion(s.kind.version.String()): set}
}

// loader is the user of tests that stands for controllers and kubelets: what it writes to an
// object's main resource takes the status along, and namespaces need not be there.
const (
	ours   = "lab:"
	loader = ours + "loader"
)

func loads(ctx context.Context) bool {
	user, known := request.UserFrom(ctx)
	return known && user.GetName() == loader
}

func part(obj runtime.Object, name string) reflect.Value {
	return reflect.ValueOf(obj).Elem().FieldByName(name)
}

func withLabel(all map[string]string, key, value string) map[string]string {
	if all == nil {
		all = map[string]string{}
	}
	all[key] = value
	return all
}

// kindStore serves a kind, with its short names.
type kindStore struct {
	*registry.Store
	short []string
}

func (s kindStore) ShortNames() []string { return s.short }

// statusStore serves a kind's status.
type statusStore struct{ store *registry.Store }

func (s statusStore) New() runtime.Object { return s.store.New() }
func (s statusStore) Destroy()            {}
func (s statusStore) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	return s.store.Get(ctx, name, options)
}
func (s statusStore) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo,
	create rest.ValidateObjectFunc, update rest.ValidateObjectUpdateFunc, _ bool,
	options *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return s.store.Update(ctx, name, info, create, update, false, options)
}
func (s statusStore) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return s.store.UpdateStrategy.(statusStrategy).GetResetFields()
}
func (s statusStore) ConvertToTable(ctx context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	return s.store.ConvertToTable(ctx, obj, options)
}

// stores makes a kind's storage, and that of its status.
func stores(k kind, getter generic.RESTOptionsGetter) (map[string]rest.Storage, error) {
	own := strategy{scheme, names.SimpleNameGenerator, k}
	resource := k.version.WithResource(k.plural).GroupResource()
	store := &registry.Store{
		NewFunc:                   func() runtime.Object { return fresh(k.object) },
		NewListFunc:               func() runtime.Object { return fresh(k.list) },
		DefaultQualifiedResource:  resource,
		SingularQualifiedResource: k.version.WithResource(k.singular).GroupResource(),
		CreateStrategy:            own,
		UpdateStrategy:            own,
		DeleteStrategy:            own,
		ResetFieldsStrategy:       own,
		ReturnDeletedObject:       k.name == "Pod" || k.name == "Service",
		TableConvertor:            rest.NewDefaultTableConvertor(resource),
	}
	if k.name == "Event" {
		store.TTLFunc = func(runtime.Object, uint64, bool) (uint64, error) { return 3600, nil }
	}
	attributes := func(obj runtime.Object) (labels.Set, fields.Set, error) {
		accessor, err := meta.Accessor(obj)
		if err != nil {
			return nil, nil, err
		}
		set := generic.AddObjectMetaFieldsSet(k.fields(obj), accessor.(metav1.ObjectMetaAccessor).GetObjectMeta().(*metav1.ObjectMeta), k.namespaced)
		return accessor.GetLabels(), set, nil
	}
	store.PredicateFunc = func(label labels.Selector, f fields.Selector) storage.SelectionPredicate {
		return storage.SelectionPredicate{Label: label, Field: f, GetAttrs: attributes}
	}
	options := &generic.StoreOptions{RESTOptions: getter, AttrFunc: attributes}
	if err := store.CompleteWithOptions(options); err != nil {
		return nil, err
	}
	made := map[string]rest.Storage{k.plural: kindStore{store, k.short}}
	if k.status {
		copied := *store
		copied.UpdateStrategy = statusStrategy{own}
		copied.ResetFieldsStrategy = statusStrategy{own}
		made[k.plural+"/status"] = statusStore{&copied}
	}
	return made, nil
}

func fresh(like runtime.Object) runtime.Object {
	return reflect.New(reflect.TypeOf(like).Elem()).Interface().(runtime.Object)
}
