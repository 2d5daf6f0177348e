// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	clientscheme "k8s.io/client-go/kubernetes/scheme"

	"github.com/fairlead/fairlead/apiserver/defaults"
)

// scheme has the client's types and Fairlead's defaults, which validation
// expects to be applied.
var scheme = func() *runtime.Scheme {
	s := runtime.NewScheme()
	if err := clientscheme.AddToScheme(s); err != nil {
		panic(err)
	}
	if err := defaults.Register(s); err != nil {
		panic(err)
	}
	return s
}()

// row is a change of a valid object (a JSON merge patch) and every error that
// it must get, in order.
type row struct {
	name, patch string
	want        []string
}

// change is a row for updates: the patches of the old and of the new object.
type change struct {
	name, old, new string
	want           []string
}

// object is the base with patches applied and defaults filled in.
func object[T any](t *testing.T, base string, patches ...string) *T {
	t.Helper()
	doc := []byte(base)
	for _, patch := range patches {
		merged, err := jsonpatch.MergePatch(doc, []byte(patch))
		if err != nil {
			t.Fatalf("patch %s: %v", patch, err)
		}
		doc = merged
	}
	obj := new(T)
	if err := json.Unmarshal(doc, obj); err != nil {
		t.Fatalf("decode %s: %v", doc, err)
	}
	scheme.Default(any(obj).(runtime.Object))
	return obj
}

// check compares the errors' texts with the wanted ones. A wanted text that
// ends with an ellipsis has to be a beginning.
func check(t *testing.T, errs field.ErrorList, want []string) {
	t.Helper()
	got := make([]string, 0, len(errs))
	for i, err := range errs {
		text := err.Error()
		if i < len(want) && strings.HasSuffix(want[i], "…") && strings.HasPrefix(text, strings.TrimSuffix(want[i], "…")) {
			text = want[i]
		}
		got = append(got, text)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func creates[T any](t *testing.T, base string, validate func(*T) field.ErrorList, rows []row) {
	t.Helper()
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { check(t, validate(object[T](t, base, r.patch)), r.want) })
	}
}

// updates runs rows of changes; the new object is the old one's patch and then
// its own on top of the base.
func updates[T any](t *testing.T, base string, validate func(obj, old *T) field.ErrorList, rows []change) {
	t.Helper()
	const stored = `{"metadata":{"resourceVersion":"1"}}`
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			old := object[T](t, base, stored, r.old)
			obj := object[T](t, base, stored, r.old, r.new)
			check(t, validate(obj, old), r.want)
		})
	}
}

// decided fails for a field of the type that is in none of the lists: when the
// API grows, somebody has to decide whether the field is checked, only kept,
// or refused.
func decided[T any](t *testing.T, lists ...[]string) {
	t.Helper()
	all := slices.Concat(lists...)
	kind := reflect.TypeFor[T]()
	for i := range kind.NumField() {
		if name := kind.Field(i).Name; !slices.Contains(all, name) {
			t.Errorf("%s.%s: nobody decided whether it is checked, kept or refused", kind, name)
		}
	}
	for _, name := range all {
		if _, ok := kind.FieldByName(name); !ok {
			t.Errorf("%s has no field %s", kind, name)
		}
	}
}
