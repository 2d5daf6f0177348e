// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/fairlead/fairlead/model"
)

// events is an API server that has every Service and keeps the Events it is sent.
type events struct {
	t    *testing.T
	sent []*corev1.Event
}

func (e *events) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	codec := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
	if r.Method == http.MethodGet {
		svc := &corev1.Service{}
		svc.Name, svc.Namespace, svc.UID = r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:], "default", "u1"
		if err := codec.Encode(svc, w); err != nil {
			e.t.Error(err)
		}
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		e.t.Error(err)
	}
	event := new(corev1.Event)
	if _, _, err := codec.Decode(body, nil, event); err != nil {
		e.t.Error(err)
	}
	e.sent = append(e.sent, event)
	_ = codec.Encode(event, w)
}

// An Event is about the Service that it names, and such that an API server takes it, however long the names and reasons are.
func TestWarn(t *testing.T) {
	server := &events{t: t}
	web := httptest.NewServer(server)
	defer web.Close()
	client, err := NewClientFor(&rest.Config{Host: web.URL})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"web", strings.Repeat("x", 253), strings.Repeat("x", 199) + "." + strings.Repeat("y", 50)} {
		service := model.Name{Namespace: "default", Name: name}
		for range 2 {
			if err := client.Warn(context.Background(), service, "n1", "FailedToProgram", strings.Repeat("é", 1000)); err != nil {
				t.Fatal(err)
			}
		}
		a, b := server.sent[len(server.sent)-2], server.sent[len(server.sent)-1]
		if a.Name == b.Name {
			t.Errorf("two Events have the name %s", a.Name)
		}
		if wrong := apivalidation.NameIsDNSSubdomain(a.Name, false); len(wrong) > 0 || len(a.GenerateName) > 0 {
			t.Errorf("name %q: %v", a.Name, wrong)
		}
		if len(a.Message) > 1024 || strings.ToValidUTF8(a.Message, "") != a.Message {
			t.Errorf("message of %d bytes: %q", len(a.Message), a.Message)
		}
		if o := a.InvolvedObject; o.Name != name || o.Kind != "Service" || o.UID != "u1" || a.Type != corev1.EventTypeWarning || a.Source.Host != "n1" {
			t.Errorf("%+v", a)
		}
	}
}

// nodes is an API server that has one Node, and takes a patch of its taints only if that is of the Node as it is.
type nodes struct {
	t       *testing.T
	node    corev1.Node
	patches int
	// between changes the Node after it was read.
	between func(*corev1.Node)
}

func (s *nodes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	codec := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
	if r.Method == http.MethodPatch {
		s.patches++
		var patch struct {
			Metadata struct{ ResourceVersion string }
			Spec     struct{ Taints []corev1.Taint }
		}
		if err := json.NewDecoder(r.Body).Decode(&patch); err != nil || r.Header.Get("Content-Type") != "application/merge-patch+json" {
			s.t.Errorf("patch of type %s: %v", r.Header.Get("Content-Type"), err)
		}
		if patch.Metadata.ResourceVersion != s.node.ResourceVersion {
			w.WriteHeader(http.StatusConflict)
			return
		}
		s.node.Spec.Taints = patch.Spec.Taints
	}
	if err := codec.Encode(&s.node, w); err != nil {
		s.t.Error(err)
	}
	if s.between != nil {
		s.between(&s.node)
	}
}

// The taint goes, whatever its effects, others stay, and a change by somebody else between reading and writing is not undone.
func TestRemoveTaint(t *testing.T) {
	taint := func(key string, effect corev1.TaintEffect) corev1.Taint {
		return corev1.Taint{Key: key, Effect: effect}
	}
	server := &nodes{t: t}
	server.node.Name, server.node.ResourceVersion = "n1", "7"
	server.node.Spec.Taints = []corev1.Taint{taint("mine", corev1.TaintEffectNoSchedule), taint("other", corev1.TaintEffectNoSchedule), taint("mine", corev1.TaintEffectNoExecute)}
	web := httptest.NewServer(server)
	defer web.Close()
	client, err := NewClientFor(&rest.Config{Host: web.URL})
	if err != nil {
		t.Fatal(err)
	}
	server.between = func(n *corev1.Node) {
		n.ResourceVersion, n.Spec.Taints = "8", append(n.Spec.Taints, taint("late", corev1.TaintEffectNoSchedule))
		server.between = nil
	}
	if err := client.RemoveTaint(t.Context(), "n1", "mine"); err == nil || len(server.node.Spec.Taints) != 4 {
		t.Errorf("a change meanwhile: %v, taints %v", err, server.node.Spec.Taints)
	}
	for range 2 {
		if err := client.RemoveTaint(t.Context(), "n1", "mine"); err != nil {
			t.Fatal(err)
		}
	}
	if got := server.node.Spec.Taints; len(got) != 2 || got[0].Key != "other" || got[1].Key != "late" || server.patches != 2 {
		t.Errorf("taints %v after %d patches", got, server.patches)
	}
}
