// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"

	"github.com/fairlead/fairlead/model"
)

// sent is an object as a watch brings it.
func sent(t testing.TB, o runtime.Object) runtime.Object {
	t.Helper()
	scheme, whole, less := protobufs(t)
	got, _, err := less.Decode(encoded(t, scheme, whole, o), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// counting counts what is decoded.
type counting struct {
	runtime.Decoder
	times *int
}

// Decode implements runtime.Decoder.
func (c counting) Decode(data []byte, kind *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	*c.times++
	return c.Decoder.Decode(data, kind, into)
}

// TestBroughtAgain: of what a watch brings as it was, whoever may have written it again, nothing is decoded. What the builder has from elsewhere, has no more or
// has never taken in is.
func TestBroughtAgain(t *testing.T) {
	f := newFeed(t)
	times, version := 0, 0
	brought := func(o runtime.Object) runtime.Object {
		version++
		meta := o.(metav1.Object)
		meta.SetResourceVersion(fmt.Sprint(version))
		meta.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: fmt.Sprint("manager ", version)}})
		m := sent(t, o).(*message)
		if m.GetResourceVersion() != fmt.Sprint(version) {
			t.Errorf("version %q, want %d", m.GetResourceVersion(), version)
		}
		m.decoder = counting{m.decoder, &times}
		return m
	}
	heartbeat := func(ready corev1.ConditionStatus) *corev1.Node {
		n := kubeletsNode(1 + version)
		n.Status.Conditions[0].Status, n.Status.Conditions[0].LastHeartbeatTime = ready, metav1.NewTime(time.Unix(int64(version), 0))
		return n
	}
	ofNobody := func() runtime.Object {
		sl := sliceOf("nobody")
		sl.Labels = nil
		return sl
	}
	services, endpoints, nodes := f.store("services"), f.store("endpointslices"), f.store("nodes")
	a := func() runtime.Object { return serviceAt("a", "10.96.0.1") }
	for _, tt := range []struct {
		does    string
		do      func() error
		decoded int
	}{
		{"list", func() error { f.stream("services", brought(a())); return nil }, 1},
		{"list again", func() error { f.stream("services", brought(a())); return nil }, 0},
		{"update", func() error { return services.Update(brought(a())) }, 0},
		{"change", func() error { return services.Update(brought(serviceAt("a", "10.96.0.2"))) }, 1},
		{"change back", func() error { return services.Update(brought(a())) }, 1},
		{"a list that breaks off", func() error { services.shrink(brought(serviceAt("a", "10.96.0.3"))); return nil }, 1},
		{"list as before", func() error { f.stream("services", brought(a())); return nil }, 0},
		{"list in pages", func() error { f.page("services", a()); return nil }, 0},
		{"update after pages", func() error { return services.Update(brought(a())) }, 1},
		{"and again", func() error { return services.Update(brought(a())) }, 0},
		{"delete", func() error { return services.Delete(brought(a())) }, 0},
		{"add", func() error { return services.Add(brought(a())) }, 1},
		{"list another", func() error { f.stream("services", brought(serviceAt("b", "10.96.0.2"))); return nil }, 1},
		{"list what was missing", func() error { f.stream("services", brought(a())); return nil }, 1},
		{"endpoints", func() error { return endpoints.Add(brought(sliceOf("a", "10.244.0.1"))) }, 1},
		{"the same", func() error { return endpoints.Update(brought(sliceOf("a", "10.244.0.1"))) }, 0},
		{"a slice of no Service", func() error { return endpoints.Add(brought(ofNobody())) }, 1},
		{"the same", func() error { return endpoints.Update(brought(ofNobody())) }, 0},
		{"a Node", func() error { return nodes.Add(brought(heartbeat(corev1.ConditionTrue))) }, 1},
		{"its kubelet is there", func() error { return nodes.Update(brought(heartbeat(corev1.ConditionTrue))) }, 0},
		{"it is not ready", func() error { return nodes.Update(brought(heartbeat(corev1.ConditionFalse))) }, 1},
	} {
		times = 0
		if err := tt.do(); err != nil || times != tt.decoded {
			t.Errorf("%s: %v; %d decoded, want %d", tt.does, err, times, tt.decoded)
		}
	}
	if _, ok := sent(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}}).(*corev1.Pod); !ok {
		t.Error("a Pod waits to be decoded: what was attached and detached here counts anew with each")
	}
	if _, ok := sent(t, &corev1.Service{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "7"}}).(*corev1.Service); !ok {
		t.Error("a bookmark waits to be decoded, whose annotation ends a list")
	}
}

// TestMessagesRandom: whatever comes in whatever order, by watches, lists and lists that break off, a source that is brought messages knows what one does that is
// brought whole objects, and tells the same.
func TestMessagesRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	one, other := newFeed(t), newFeed(t)
	one.whole = true
	var version int
	random := func(resource string) runtime.Object {
		version++
		name, last := string(rune('a'+r.IntN(4))), 1+r.IntN(3)
		var o runtime.Object
		switch resource {
		case "services":
			o = serviceAt(name, fmt.Sprintf("10.96.0.%d", last))
			if r.IntN(8) == 0 {
				o.(*corev1.Service).Spec.ClusterIP = "none of any kind"
			}
		case "endpointslices":
			o = sliceOf(name, fmt.Sprintf("10.244.0.%d", last))
		default:
			n := kubeletsNode(r.IntN(3))
			n.Name, n.Spec.PodCIDRs = name, []string{fmt.Sprintf("10.244.%d.0/24", last)}
			o = n
		}
		o.(metav1.Object).SetResourceVersion(fmt.Sprint(version))
		return o
	}
	resources := []string{"services", "endpointslices", "nodes"}
	for _, f := range []*feed{one, other} {
		for _, resource := range append(resources, "pods") {
			f.stream(resource)
		}
	}
	for i := range 3000 {
		resource := resources[r.IntN(len(resources))]
		list := make([]runtime.Object, r.IntN(6))
		for i := range list {
			list[i] = random(resource)
		}
		o, what := random(resource), r.IntN(10)
		for _, f := range []*feed{one, other} {
			w := f.store(resource)
			switch what {
			case 0:
				f.stream(resource, list...)
			case 1:
				f.page(resource, firstOfEach(list)...)
			case 2:
				temporary := cache.NewStore(cache.DeletionHandlingMetaNamespaceKeyFunc, cache.WithTransformer(w.Transformer()))
				for _, o := range list {
					_ = temporary.Add(f.brought(o)) // and no more: it breaks off
				}
			case 3, 4:
				_ = w.Delete(f.brought(o))
			default:
				_ = w.Update(f.brought(o))
			}
		}
		if a, b := everythingOf(one.s), everythingOf(other.s); !reflect.DeepEqual(a, b) {
			t.Fatalf("after %d, %s: from messages\n%+v\nand from objects\n%+v", i, resource, b, a)
		}
		if a, b := one.s.Flawed(), other.s.Flawed(); !slices.Equal(a, b) {
			t.Fatalf("after %d, %s: flaws from messages %q, from objects %q", i, resource, b, a)
		}
		if resource != "nodes" && one.heard != other.heard {
			t.Fatalf("after %d, %s: messages told %+v, objects %+v", i, resource, other.heard, one.heard)
		}
	}
}

// firstOfEach has one object of each name: the first.
func firstOfEach(list []runtime.Object) (out []runtime.Object) {
	names := make(map[string]bool)
	for _, o := range list {
		if n := o.(metav1.Object).GetName(); !names[n] {
			names[n] = true
			out = append(out, o)
		}
	}
	return out
}

// everything is what a source knows.
type everything struct {
	services map[model.Name]model.ServiceSpec
	slices   map[model.Name]model.Slice
	nodes    map[string]model.Node
}

func everythingOf(s *Source) *everything {
	e := &everything{map[model.Name]model.ServiceSpec{}, map[model.Name]model.Slice{}, map[string]model.Node{}}
	s.Save(e)
	return e
}

func (e *everything) SetService(s model.ServiceSpec) {
	s.Arrived = time.Time{}
	e.services[s.Name] = s
}
func (e *everything) SetSlice(s model.Slice)              { e.slices[s.Name] = s }
func (e *everything) SetNode(n model.Node)                { e.nodes[n.Name] = n }
func (*everything) SetPod(model.Pod)                      {}
func (*everything) SetServiceCIDR(string, []netip.Prefix) {}

// TestUnreadable: an object that cannot be decoded is named, and what was known of it stays, until there is one that can. Lists do not lose it, and everything else goes on.
func TestUnreadable(t *testing.T) {
	f := newFeed(t)
	for _, resource := range []string{"endpointslices", "nodes", "pods"} {
		f.stream(resource)
	}
	good := serviceAt("a", "10.96.0.1")
	f.stream("services", good, serviceAt("b", "10.96.0.2"))
	bad := func() *message {
		m := sent(t, serviceAt("a", "10.96.0.9")).(*message)
		spec := protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), []byte{0xff})
		raw := append(protowire.AppendBytes(protowire.AppendTag(nil, fieldMeta, protowire.BytesType), field(field(m.body[len(magic):], fieldRaw), fieldMeta)), spec...)
		kind := protowire.AppendString(protowire.AppendTag(nil, fieldAPIVersion, protowire.BytesType), "v1")
		kind = protowire.AppendString(protowire.AppendTag(kind, fieldKind, protowire.BytesType), "Service")
		body := protowire.AppendBytes(protowire.AppendTag([]byte(magic), fieldType, protowire.BytesType), kind)
		body = protowire.AppendBytes(protowire.AppendTag(body, fieldRaw, protowire.BytesType), raw)
		m, ok := newMessage(body[len(magic):], body, m.decoder)
		if !ok || m.name.Name != "a" {
			t.Fatalf("the message is of %v", m.name)
		}
		return m
	}
	const both = "a [10.96.0.1] with 0, b [10.96.0.2] with 0"
	for _, tt := range []struct {
		does         string
		do           func() error
		flawed, want string
	}{
		{"update", func() error { return f.store("services").Update(bad()) }, "service x/a: all of it: " + io.ErrUnexpectedEOF.Error(), both},
		{"list", func() error { f.stream("services", bad(), serviceAt("b", "10.96.0.2")); return nil }, "service x/a: all of it: " + io.ErrUnexpectedEOF.Error(), both},
		{"as it was", func() error { return f.store("services").Update(f.brought(good)) }, "", both},
		{"once more", func() error { return f.store("services").Update(bad()) }, "service x/a: all of it: " + io.ErrUnexpectedEOF.Error(), both},
		{"delete", func() error { return f.store("services").Delete(bad()) }, "", "b [10.96.0.2] with 0"},
	} {
		if err := tt.do(); err != nil || strings.Join(f.s.Flawed(), "\n") != tt.flawed || f.services() != tt.want {
			t.Errorf("%s: %v; flawed %q, want %q; Services %s, want %s", tt.does, err, f.s.Flawed(), tt.flawed, f.services(), tt.want)
		}
	}
}
