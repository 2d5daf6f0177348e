// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package printers

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apiserver/pkg/registry/rest"
)

// now is the clock that ages are measured with.
var now = time.Now

// For is the convertor of a resource: its own, or the library's name and
// creation time for one that has none here.
func For(gr schema.GroupResource) rest.TableConvertor {
	if c, ok := tables[gr]; ok {
		return c
	}
	return rest.NewDefaultTableConvertor(gr)
}

// convertor makes the tables of one kind.
type convertor struct {
	resource schema.GroupResource
	columns  []metav1.TableColumnDefinition
	// row makes the cells, one for each column, and the conditions of the
	// row; false for an object of another kind.
	row func(runtime.Object) (metav1.TableRow, bool)
}

var _ rest.TableConvertor = convertor{}

// table pairs a kind's columns with the function that fills them.
func table[T any](gr schema.GroupResource, columns []metav1.TableColumnDefinition, cells func(*T) []any) convertor {
	return convertor{gr, columns, func(obj runtime.Object) (metav1.TableRow, bool) {
		o, ok := any(obj).(*T)
		if !ok {
			return metav1.TableRow{}, false
		}
		return metav1.TableRow{Cells: cells(o)}, true
	}}
}

// ConvertToTable makes a table of an object or a list. options are
// *metav1.TableOptions or nil. Other kinds of objects are refused with 406.
func (c convertor) ConvertToTable(_ context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	t := &metav1.Table{}
	add := func(o runtime.Object) error {
		row, ok := c.row(o)
		if !ok {
			return notAcceptable(fmt.Sprintf("the resource %s does not print %T", c.resource, o))
		}
		row.Object = runtime.RawExtension{Object: o}
		t.Rows = append(t.Rows, row)
		return nil
	}
	if meta.IsListType(obj) {
		if err := meta.EachListItem(obj, add); err != nil {
			return nil, err
		}
	} else if err := add(obj); err != nil {
		return nil, err
	}
	if list, err := meta.ListAccessor(obj); err == nil {
		t.ResourceVersion = list.GetResourceVersion()
		t.Continue = list.GetContinue()
		t.RemainingItemCount = list.GetRemainingItemCount()
	} else if single, err := meta.CommonAccessor(obj); err == nil {
		t.ResourceVersion = single.GetResourceVersion()
	}
	if o, ok := options.(*metav1.TableOptions); !ok || o == nil || !o.NoHeaders {
		t.ColumnDefinitions = c.columns
	}
	return t, nil
}

// notAcceptable is the API's answer when there is no table for an object.
type notAcceptable string

func (e notAcceptable) Error() string { return string(e) }

// Status is the error as the API sends it.
func (e notAcceptable) Status() metav1.Status {
	return metav1.Status{
		Status:  metav1.StatusFailure,
		Code:    http.StatusNotAcceptable,
		Reason:  metav1.StatusReasonNotAcceptable,
		Message: string(e),
	}
}

// nameColumn is the first of every table.
var nameColumn = metav1.TableColumnDefinition{
	Name: "Name", Type: "string", Format: "name", Description: metav1.ObjectMeta{}.SwaggerDoc()["name"],
}

// column is of text, with what it means.
func column(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "string", Description: description}
}

// number is a column of integers.
func number(name, description string) metav1.TableColumnDefinition {
	c := column(name, description)
	c.Type = "integer"
	return c
}

// wide is a column that only a wide table shows.
func wide(c metav1.TableColumnDefinition) metav1.TableColumnDefinition {
	c.Priority = 1
	return c
}

// ageColumn is how long ago the object was created.
var ageColumn = column("Age", metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"])

// since is how long ago a time was, as in "5m12s".
func since(t metav1.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now().Sub(t.Time))
}

// sinceMicro is since for the finer clock of events.
func sinceMicro(t metav1.MicroTime) string { return since(metav1.NewTime(t.Time)) }

// or is the text, or what stands for none.
func or(text, none string) string {
	if text == "" {
		return none
	}
	return text
}
