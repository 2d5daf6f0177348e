// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead/fairlead/model"
)

var saved = time.Unix(1_780_000_000, 0)

func header() Header { return Header{Node: "n1", Boot: "b1", Saved: saved, Left: model.Network} }

// written is a file of a world.
func written(t testing.TB, w *world) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent", "checkpoint")
	if _, err := Write(path, header(), w.each); err != nil {
		t.Fatal(err)
	}
	return path
}

func contents(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRoundTrip: whatever a world has comes back as it was, and what is built from it is the same.
func TestRoundTrip(t *testing.T) {
	d := newDice(t)
	for range 300 {
		want, got := d.world(), newWorld()
		path := written(t, want)
		h, err := Read(path, "n1", "b1", got)
		if err != nil {
			t.Fatal(err)
		}
		if h != header() {
			t.Fatalf("header %+v", h)
		}
		if diff := want.same(got); diff != "" {
			t.Fatal(diff)
		}
	}
}

// TestEveryFieldIsKept: a field that the model gets is a field of the file, or this test fails until it is.
func TestEveryFieldIsKept(t *testing.T) {
	for _, tt := range []struct {
		of     any
		fields string
	}{
		{model.ServiceSpec{}, "Name Type ClusterIPs Unproxied LocalOnly PublishNotReady Affinity Exposure ExternalName Ports Arrived"},
		{model.Exposure{}, "LocalOnly Balancers ExternalIPs SourceRanges HealthPort"},
		{model.Port{}, "Name Protocol Port NodePort"},
		{model.Slice{}, "Name Service Ports Endpoints"},
		{model.Endpoint{}, "Addr Hostname Node Zone Pod Ready Serving Terminating Leaving Hints"},
		{model.Hints{}, "Nodes Zones"},
		{model.Node{}, "Name Addrs PodCIDRs Zone Ready Leaving"},
		{model.Pod{}, "Name Addrs Hostname Subdomain Terminating HostNetwork HostPorts Created Resolver"},
		{model.HostPort{}, "Addr Protocol Port Target"},
		{model.Resolver{}, "Policy Searches Ndots"},
	} {
		var got []string
		typ := reflect.TypeOf(tt.of)
		for i := range typ.NumField() {
			got = append(got, typ.Field(i).Name)
		}
		if strings.Join(got, " ") != tt.fields {
			t.Errorf("%v has the fields %v; those that are written are %s: write and read the new ones, and raise the version", typ, got, tt.fields)
		}
	}
}

// TestTooLarge: an object that no reader would take is left out, and costs nobody else.
func TestTooLarge(t *testing.T) {
	w := newDice(t).world()
	path := filepath.Join(t.TempDir(), "state")
	long := strings.Repeat("x", mostText+1)
	_, err := Write(path, header(), func(to model.Objects) {
		to.SetSlice(model.Slice{Name: model.Name{Namespace: "a", Name: "zone"}, Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr("10.0.0.1"), Zone: long}}})
		to.SetSlice(model.Slice{Name: model.Name{Namespace: "a", Name: "target"}, Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr("10.0.0.1"), Pod: model.Name{Name: long}}}})
		to.SetService(model.ServiceSpec{Name: model.Name{Namespace: "a", Name: "ranges"}, Exposure: &model.Exposure{SourceRanges: slices.Repeat([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, mostList+1)}})
		w.each(to)
	})
	if err != nil {
		t.Fatal(err)
	}
	got := newWorld()
	if _, err := Read(path, "n1", "b1", got); err != nil {
		t.Fatal(err)
	}
	if differ := w.same(got); differ != "" {
		t.Error(differ)
	}
}

// TestReplaced: a file is replaced in one step, also one that a killed agent left half written beside it; an error leaves what was there.
func TestReplaced(t *testing.T) {
	d := newDice(t)
	first, second, got := d.world(), d.world(), newWorld()
	path := written(t, first)
	if err := os.WriteFile(path+".new", bytes.Repeat([]byte("half"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	size, err := Write(path, header(), second.each)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() != size || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; written %d", info, err, size)
	}
	if _, err := Read(path, "n1", "b1", got); err != nil || second.same(got) != "" {
		t.Errorf("%v; %s", err, second.same(got))
	}
	if all, _ := os.ReadDir(filepath.Dir(path)); len(all) != 1 {
		t.Errorf("left: %v", all)
	}

	before := contents(t, path)
	if err := os.Mkdir(path+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(path, header(), first.each); err == nil || !strings.Contains(err.Error(), "write state") {
		t.Errorf("no error where none can be written: %v", err)
	}
	if !bytes.Equal(contents(t, path), before) {
		t.Error("a failed write has changed the file")
	}
}

// TestFullDisk: a write that does not fit fails, leaves the file that was there, and nothing beside it.
func TestFullDisk(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Fatal(err)
	}
	path := written(t, newWorld())
	before := contents(t, path)
	if err := os.Symlink("/dev/full", path+".new"); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(path, header(), newDice(t).world().each); err == nil {
		t.Error("no error")
	}
	if !bytes.Equal(contents(t, path), before) {
		t.Error("a failed write has changed the file")
	}
}

// TestTwoAgents: of two that write at the same time, each writes a whole file or none.
func TestTwoAgents(t *testing.T) {
	d := newDice(t)
	worlds := []*world{d.world(), d.world()}
	path := written(t, worlds[0])
	var wg sync.WaitGroup
	for _, w := range worlds {
		wg.Go(func() {
			for range 50 {
				if _, err := Write(path, header(), w.each); err != nil && !errors.Is(err, errBusy) {
					t.Error(err)
				}
			}
		})
	}
	for range 100 {
		got := newWorld()
		if _, err := Read(path, "n1", "b1", got); err != nil {
			t.Fatal(err)
		}
		if worlds[0].same(got) != "" && worlds[1].same(got) != "" {
			t.Fatal("a mixture")
		}
	}
	wg.Wait()
}

// TestBadFiles: a file that is no good is named in a sentence and put beside, one of a newer version is left alone, and nothing of either is used.
func TestBadFiles(t *testing.T) {
	good := contents(t, written(t, large(20, 3)))
	edit := func(f func(b []byte) []byte) []byte { return f(slices.Clone(good)) }
	for _, tt := range []struct {
		name  string
		bytes []byte
		kind  error
		says  string
	}{
		{"empty", nil, ErrCorrupt, "it is empty"},
		{"one byte", []byte("F"), ErrCorrupt, "it is no state of Fairlead's"},
		{"foreign", []byte("kind: Pod\napiVersion: v1\n"), ErrCorrupt, "it is no state of Fairlead's"},
		{"its start only", good[:len(magic)+1], ErrCorrupt, "it ends within its first bytes"},
		{"truncated", good[:len(good)/2], ErrCorrupt, "it was truncated or changed"},
		{"a byte short", good[:len(good)-1], ErrCorrupt, "it was truncated or changed"},
		{"a byte more", append(slices.Clone(good), 0), ErrCorrupt, "it was truncated or changed"},
		{"a bit changed", edit(func(b []byte) []byte { b[len(b)/2] ^= 4; return b }), ErrCorrupt, "it was truncated or changed"},
		{"zeros", make([]byte, 4096), ErrCorrupt, "it is no state of Fairlead's"},
		{"a newer version", edit(func(b []byte) []byte { b[len(magic)] = version + 1; return b }), ErrNewer, "is of a newer version: 2, where this one reads 1"},
		{"version 0", edit(func(b []byte) []byte { b[len(magic)] = 0; return b }), ErrCorrupt, "it ends within its first bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "checkpoint")
			if err := os.WriteFile(path, tt.bytes, 0o600); err != nil {
				t.Fatal(err)
			}
			got := newWorld()
			_, err := Read(path, "n1", "b1", got)
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want it to say %q", err, tt.says)
			}
			if diff := newWorld().same(got); diff != "" {
				t.Error(diff)
			}
			where := path
			if tt.kind == ErrCorrupt {
				where += ".corrupt"
				if _, err := Read(path, "n1", "b1", got); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("it is still there: %v", err)
				}
			}
			if !bytes.Equal(contents(t, where), tt.bytes) {
				t.Errorf("%s is another one", where)
			}
		})
	}
	t.Run("of another node", func(t *testing.T) {
		path := written(t, large(2, 2))
		_, err := Read(path, "n2", "b1", newWorld())
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), `it is of node "n1", not of this one, "n2"`) {
			t.Error(err)
		}
	})
	t.Run("a directory", func(t *testing.T) {
		if _, err := Read(t.TempDir(), "n1", "b1", newWorld()); err == nil || errors.Is(err, ErrCorrupt) {
			t.Error(err)
		}
	})
}

// TestReboot: after a start of the node, its own pods are gone as pods and as endpoints, but for those on its own network; all else is as it was.
func TestReboot(t *testing.T) {
	pod := func(n string) model.Name { return model.Name{Namespace: "x", Name: n} }
	addr := netip.MustParseAddr
	w := newWorld()
	w.SetNode(model.Node{Name: "n1", Addrs: []netip.Addr{addr("192.168.0.1"), addr("fd00::1")}})
	w.SetNode(model.Node{Name: "n2", Addrs: []netip.Addr{addr("192.168.0.2")}})
	w.SetPod(model.Pod{Name: pod("a"), Addrs: []netip.Addr{addr("10.0.1.5")}})
	w.SetPod(model.Pod{Name: pod("static"), Addrs: []netip.Addr{addr("192.168.0.1")}, HostNetwork: true})
	w.SetService(model.ServiceSpec{Name: pod("web"), ClusterIPs: []netip.Addr{addr("10.96.0.9")}, Ports: []model.Port{{Port: 80, Protocol: model.TCP}}})
	w.SetSlice(model.Slice{Name: pod("web-1"), Service: "web", Ports: []model.Port{{Port: 80, Protocol: model.TCP}}, Endpoints: []model.Endpoint{
		{Addr: addr("10.0.1.5"), Node: "n1", Pod: pod("a"), Ready: true, Serving: true},
		{Addr: addr("10.0.2.5"), Node: "n2", Pod: pod("b"), Ready: true, Serving: true},
		{Addr: addr("10.9.9.9"), Node: "n1", Ready: true, Serving: true}, // no pod: somebody's own address
		{Addr: addr("192.168.0.1"), Node: "n1", Pod: pod("static"), Ready: true, Serving: true},
	}})
	for _, tt := range []struct{ boot, endpoints, pods string }{
		{"b1", "[10.0.1.5 10.0.2.5 10.9.9.9 192.168.0.1]", "[x/a x/static]"},
		{"b2", "[10.0.2.5 10.9.9.9 192.168.0.1]", "[x/static]"},
		{"", "[10.0.2.5 10.9.9.9 192.168.0.1]", "[x/static]"}, // not known: the careful way
	} {
		got := newWorld()
		b := model.NewBuilder(model.Config{Self: "n1"})
		path := written(t, w)
		for _, to := range []model.Objects{got, b} {
			if _, err := Read(path, "n1", tt.boot, to); err != nil {
				t.Fatal(err)
			}
		}
		var addrs []string
		web, _ := b.Build().Services.Get(pod("web"))
		for _, be := range web.Backends[0] {
			addrs = append(addrs, be.Addr.String())
		}
		if fmt.Sprint(addrs) != tt.endpoints || fmt.Sprint(names(got.pods)) != tt.pods {
			t.Errorf("boot %q: endpoints %v, want %s; pods %v, want %s", tt.boot, addrs, tt.endpoints, names(got.pods), tt.pods)
		}
		if !reflect.DeepEqual(got.nodes, w.nodes) || !reflect.DeepEqual(got.services, w.services) {
			t.Error("nodes or Services have changed")
		}
	}
}

// TestBootID: the kernel's is what it is, and stays.
func TestBootID(t *testing.T) {
	if id := BootID(); len(id) != 36 || id != BootID() {
		t.Errorf("boot id %q", id)
	}
}

// TestSmall: the size that docs/design/0009 promises, of a cluster as clusters are.
func TestSmall(t *testing.T) {
	w := large(1000, 10)
	var counted counter
	counted.w = io.Discard
	if err := encode(&counted, header(), w.each); err != nil {
		t.Fatal(err)
	}
	if perEndpoint := float64(counted.n) / 10_000; perEndpoint > 40 {
		t.Errorf("%.1f bytes an endpoint", perEndpoint)
	}
}

// FuzzRecords: no bytes make the decoder fall over or ask for much memory, what it takes can be built, and comes out of an encoder as it went in.
func FuzzRecords(f *testing.F) {
	for seed := range uint64(4) {
		d := seeded(seed)
		var b bytes.Buffer
		e := newEncoder(&b)
		d.world().each(e)
		if err := e.finish(); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		w, b := newWorld(), model.NewBuilder(model.Config{Self: "n1"})
		if decode(bytes.NewReader(in), w) != nil {
			return
		}
		w.each(b)
		_ = b.Build().String()
		var out bytes.Buffer
		e := newEncoder(&out)
		w.each(e)
		if err := e.finish(); err != nil {
			t.Fatal(err)
		}
		again := newWorld()
		if err := decode(bytes.NewReader(out.Bytes()), again); err != nil {
			t.Fatal(err)
		}
		if diff := w.same(again); diff != "" {
			t.Fatal(diff)
		}
	})
}

// FuzzFile: no file makes a start fall over.
func FuzzFile(f *testing.F) {
	f.Add(contents(f, written(f, seeded(7).world())))
	f.Add([]byte(magic + "\x01"))
	f.Fuzz(func(t *testing.T, in []byte) {
		b := model.NewBuilder(model.Config{Self: "n1"})
		if _, err := read(bytes.NewReader(in), int64(len(in)), "n1", "b2", b); err == nil {
			_ = b.Build().String()
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	w := large(10_000, 10)
	path := filepath.Join(b.TempDir(), "checkpoint")
	b.ReportAllocs()
	for b.Loop() {
		size, err := Write(path, header(), w.each)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(size)/100_000, "B/endpoint")
		b.ReportMetric(float64(size)/10_000, "B/service")
	}
}

func BenchmarkRead(b *testing.B) {
	path := written(b, large(10_000, 10))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Read(path, "n1", "b1", model.NewBuilder(model.Config{Self: "n1"})); err != nil {
			b.Fatal(err)
		}
	}
}
