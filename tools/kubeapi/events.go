// SPDX-License-Identifier: Apache-2.0

package main

import (
	core "k8s.io/api/core/v1"
	events "k8s.io/api/events/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Events are stored once and served by two groups: as core/v1, and in the form of events.k8s.io.

func eventFields(o runtime.Object) fields.Set {
	event := o.(*core.Event)
	source := event.Source.Component
	if source == "" {
		source = event.ReportingController
	}
	return fields.Set{
		"involvedObject.kind":            event.InvolvedObject.Kind,
		"involvedObject.namespace":       event.InvolvedObject.Namespace,
		"involvedObject.name":            event.InvolvedObject.Name,
		"involvedObject.uid":             string(event.InvolvedObject.UID),
		"involvedObject.apiVersion":      event.InvolvedObject.APIVersion,
		"involvedObject.resourceVersion": event.InvolvedObject.ResourceVersion,
		"involvedObject.fieldPath":       event.InvolvedObject.FieldPath,
		"reason":                         event.Reason,
		"reportingComponent":             event.ReportingController,
		"source":                         source,
		"type":                           event.Type,
	}
}

func addEvents() error {
	internal := schema.GroupVersion{Group: events.GroupName, Version: runtime.APIVersionInternal}
	scheme.AddKnownTypeWithName(internal.WithKind("Event"), &core.Event{})
	scheme.AddKnownTypeWithName(internal.WithKind("EventList"), &core.EventList{})
	pairs := []struct {
		from, to any
		convert  conversion.ConversionFunc
	}{
		{(*events.Event)(nil), (*core.Event)(nil), func(a, b any, _ conversion.Scope) error {
			fromNew(a.(*events.Event), b.(*core.Event))
			return nil
		}},
		{(*core.Event)(nil), (*events.Event)(nil), func(a, b any, _ conversion.Scope) error {
			toNew(a.(*core.Event), b.(*events.Event))
			return nil
		}},
		{(*events.EventList)(nil), (*core.EventList)(nil), func(a, b any, _ conversion.Scope) error {
			in, out := a.(*events.EventList), b.(*core.EventList)
			out.ListMeta, out.Items = in.ListMeta, make([]core.Event, len(in.Items))
			for i := range in.Items {
				fromNew(&in.Items[i], &out.Items[i])
			}
			return nil
		}},
		{(*core.EventList)(nil), (*events.EventList)(nil), func(a, b any, _ conversion.Scope) error {
			in, out := a.(*core.EventList), b.(*events.EventList)
			out.ListMeta, out.Items = in.ListMeta, make([]events.Event, len(in.Items))
			for i := range in.Items {
				toNew(&in.Items[i], &out.Items[i])
			}
			return nil
		}},
	}
	for _, pair := range pairs {
		if err := scheme.AddConversionFunc(pair.from, pair.to, pair.convert); err != nil {
			return err
		}
	}
	k := kind{namespaced: true, object: &core.Event{}, fields: eventFields}
	return addFieldLabels(events.SchemeGroupVersion.WithKind("Event"), k)
}

func fromNew(in *events.Event, out *core.Event) {
	*out = core.Event{
		ObjectMeta:          in.ObjectMeta,
		InvolvedObject:      in.Regarding,
		Reason:              in.Reason,
		Message:             in.Note,
		Source:              in.DeprecatedSource,
		FirstTimestamp:      in.DeprecatedFirstTimestamp,
		LastTimestamp:       in.DeprecatedLastTimestamp,
		Count:               in.DeprecatedCount,
		Type:                in.Type,
		EventTime:           in.EventTime,
		Action:              in.Action,
		Related:             in.Related,
		ReportingController: in.ReportingController,
		ReportingInstance:   in.ReportingInstance,
	}
	if in.Series != nil {
		out.Series = &core.EventSeries{Count: in.Series.Count, LastObservedTime: in.Series.LastObservedTime}
	}
}

func toNew(in *core.Event, out *events.Event) {
	*out = events.Event{
		ObjectMeta:               in.ObjectMeta,
		Regarding:                in.InvolvedObject,
		Reason:                   in.Reason,
		Note:                     in.Message,
		DeprecatedSource:         in.Source,
		DeprecatedFirstTimestamp: in.FirstTimestamp,
		DeprecatedLastTimestamp:  in.LastTimestamp,
		DeprecatedCount:          in.Count,
		Type:                     in.Type,
		EventTime:                in.EventTime,
		Action:                   in.Action,
		Related:                  in.Related,
		ReportingController:      in.ReportingController,
		ReportingInstance:        in.ReportingInstance,
	}
	if in.Series != nil {
		out.Series = &events.EventSeries{Count: in.Series.Count, LastObservedTime: in.Series.LastObservedTime}
	}
}

// checkEvent is the core of the rules for new events in pkg/apis/core/validation of Kubernetes.
func checkEvent(event *core.Event) field.ErrorList {
	var found field.ErrorList
	if event.EventTime == (meta.MicroTime{}) {
		return found
	}
	limits := []struct {
		name, value string
		length      int
	}{
		{"reportingController", event.ReportingController, 63 + 1 + 253},
		{"reportingInstance", event.ReportingInstance, 128},
		{"action", event.Action, 128},
		{"reason", event.Reason, 128},
	}
	for _, limit := range limits {
		if limit.value == "" {
			found = append(found, field.Required(field.NewPath(limit.name), ""))
		} else if len(limit.value) > limit.length {
			found = append(found, field.Invalid(field.NewPath(limit.name), "", "is too long"))
		}
	}
	if len(event.Message) > 1024 {
		found = append(found, field.Invalid(field.NewPath("message"), "", "can have at most 1024 characters"))
	}
	return found
}
