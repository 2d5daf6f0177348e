// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/testnet"
)

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

// open returns a store on dir whose clock ticks a second with every look.
func open(t testing.TB, dir string, ranges ...string) *Store {
	t.Helper()
	s, err := New(Config{Dir: dir, Ranges: prefixes(ranges...)})
	if err != nil {
		t.Fatal(err)
	}
	tick := noon
	var mu sync.Mutex
	s.now = func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		tick = tick.Add(time.Second)
		return tick
	}
	return s
}

func allocate(t testing.TB, s *Store, id string) Lease {
	t.Helper()
	l, err := s.Allocate(Lease{ID: id, ContainerID: "c-" + id, IfName: "eth0"})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func list(t testing.TB, s *Store) string {
	t.Helper()
	leases, err := s.Leases()
	if err != nil {
		t.Fatal(err)
	}
	return text(leases)
}

func text(leases []Lease) string {
	var parts []string
	for _, l := range leases {
		parts = append(parts, fmt.Sprintf("%s%v", l.ID, l.Addrs))
	}
	return strings.Join(parts, " ")
}

func TestNew(t *testing.T) {
	for _, c := range []struct {
		dir    string
		ranges []netip.Prefix
		want   string // in the error; empty: none
	}{
		{"d", prefixes("10.0.0.0/24"), ""},
		{"d", prefixes("fd00::/64"), ""},
		{"d", prefixes("10.0.0.0/24", "fd00::/64"), ""},
		{"d", prefixes("fd00::/64", "10.0.0.0/24"), ""},
		{"d", nil, ""},
		{"d", prefixes("10.0.0.0/24", "10.0.1.0/24"), "of each address family"},
		{"d", prefixes("10.0.0.0/24", "fd00::/64", "fd01::/64"), "want one"},
		{"d", prefixes("10.0.0.0/31"), "too small"},
		{"d", []netip.Prefix{{}}, "too small"},
		{"d", prefixes("::ffff:10.0.0.0/120"), "write it as IPv4"},
		{"", prefixes("10.0.0.0/24"), "no directory"},
	} {
		_, err := New(Config{Dir: c.dir, Ranges: c.ranges})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q %v: %v", c.dir, c.ranges, err)
		}
	}
}

func TestStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "ipam")
	s := open(t, dir, "10.0.0.0/29", "fd00::/64")
	if got, err := Read(dir); len(got) != 0 || err != nil {
		t.Errorf("read before the first: %v, %v", got, err)
	}
	a := allocate(t, s, "a")
	if got := fmt.Sprint(a.Addrs); got != "[10.0.0.2 fd00::2]" || a.ContainerID != "c-a" || a.AllocatedAt.IsZero() {
		t.Errorf("first lease: %+v", a)
	}
	allocate(t, s, "b")
	if again := allocate(t, s, "a"); !slices.Equal(again.Addrs, a.Addrs) || !again.AllocatedAt.Equal(a.AllocatedAt) {
		t.Errorf("asked again: %+v", again)
	}
	if got := list(t, s); got != "a[10.0.0.2 fd00::2] b[10.0.0.3 fd00::3]" {
		t.Errorf("leases %s", got)
	}
	if _, err := s.Allocate(Lease{ID: "a", ContainerID: "other"}); err == nil || !strings.Contains(err.Error(), "belongs to container c-a") {
		t.Errorf("another container: %v", err)
	}
	if l, err := s.Lookup("b"); err != nil || l.ContainerID != "c-b" {
		t.Errorf("lookup: %+v, %v", l, err)
	}
	if l, err := s.Lookup("x"); err != nil || l.ID != "" {
		t.Errorf("lookup of nobody: %+v, %v", l, err)
	}
	was, err := s.Release("a")
	if err != nil || !slices.Equal(was.Addrs, a.Addrs) {
		t.Errorf("released %+v, %v", was, err)
	}
	for _, id := range []string{"a", "nobody"} {
		if was, err := s.Release(id); err != nil || was.ID != "" {
			t.Errorf("released nothing: %+v, %v", was, err)
		}
	}
	if c := allocate(t, s, "c"); fmt.Sprint(c.Addrs) != "[10.0.0.4 fd00::4]" {
		t.Errorf("used a freed address first: %+v", c)
	}
	got, err := Read(dir)
	if err != nil || text(got) != list(t, s) {
		t.Errorf("read %s, %v", text(got), err)
	}
}

// TestStoreUpdates stores what a second request says about the holder.
func TestStoreUpdates(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, "10.0.0.0/24")
	allocate(t, s, "a")
	want := Lease{ID: "a", ContainerID: "c-a", IfName: "eth0", NetNS: "/n", NetNSID: 7, PodNamespace: "ns", PodName: "p", PodUID: "u"}
	if _, err := s.Allocate(want); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(filepath.Join(dir, fileName))
	if _, err := s.Allocate(want); err != nil {
		t.Fatal(err)
	}
	after, _ := os.ReadFile(filepath.Join(dir, fileName))
	if !bytes.Equal(before, after) {
		t.Error("wrote what was there already")
	}
	if got, err := s.Lookup("a"); err != nil || !got.same(&want) {
		t.Errorf("%+v, %v", got, err)
	}
	want.NetNS = strings.Repeat("x", maxText+1)
	if _, err := s.Allocate(want); err == nil {
		t.Error("stored a huge text")
	}
	if _, err := s.Allocate(Lease{ID: "b", NetNS: want.NetNS}); err == nil {
		t.Error("stored a huge text")
	}
	if got := list(t, s); got != "a[10.0.0.2]" {
		t.Errorf("leases %s", got)
	}
}

func TestStoreFull(t *testing.T) {
	s := open(t, t.TempDir(), "fd00::/64", "10.0.0.0/29")
	for i := range 5 {
		allocate(t, s, fmt.Sprint(i))
	}
	_, err := s.Allocate(Lease{ID: "x"})
	var full *FullError
	if !errors.As(err, &full) || full.Held != 5 || err.Error() != "allocate addresses: no free address in range 10.0.0.0/29: 5 of 5 are held" {
		t.Errorf("full: %v", err)
	}
	for _, id := range []string{"3", "1"} {
		if _, err := s.Release(id); err != nil {
			t.Fatal(err)
		}
	}
	if got := allocate(t, s, "x").Addrs[1].String(); got != "10.0.0.5" {
		t.Errorf("not the one freed longest ago: %s", got)
	}
}

// TestStoreRangeChange keeps old leases, gives new ones from the new range, and a
// new address to who asks again.
func TestStoreRangeChange(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, "10.0.0.0/24")
	allocate(t, s, "a")
	allocate(t, s, "b")
	s = open(t, dir, "10.0.1.0/24", "fd00::/64")
	allocate(t, s, "c")
	if got := list(t, s); got != "a[10.0.0.2] b[10.0.0.3] c[10.0.1.2 fd00::2]" {
		t.Errorf("leases %s", got)
	}
	allocate(t, s, "a")
	if got := list(t, s); got != "b[10.0.0.3] c[10.0.1.2 fd00::2] a[10.0.1.3 fd00::3]" {
		t.Errorf("leases %s", got)
	}
	s = open(t, dir, "10.0.0.0/24")
	if got := allocate(t, s, "d").Addrs[0].String(); got != "10.0.0.4" {
		t.Errorf("back in the old range: %s", got)
	}
}

func TestReconcile(t *testing.T) {
	s := open(t, t.TempDir(), "10.0.0.0/24")
	for _, id := range []string{"a", "b", "c", "d"} {
		allocate(t, s, id)
	}
	gone, err := s.Reconcile(func(l Lease) bool { return l.ID == "b" || l.ContainerID == "c-d" })
	if err != nil || text(gone) != "a[10.0.0.2] c[10.0.0.4]" || list(t, s) != "b[10.0.0.3] d[10.0.0.5]" {
		t.Errorf("gone %s, left %s, %v", text(gone), list(t, s), err)
	}
	gone, err = s.Reconcile(func(Lease) bool { return true })
	if err != nil || len(gone) != 0 {
		t.Errorf("gone %v, %v", gone, err)
	}
}

// TestAdopt holds what the kernel has in use, also against the file, and leaves
// alone what the file knows better.
func TestAdopt(t *testing.T) {
	s := open(t, t.TempDir(), "10.0.0.0/24", "fd00::/64")
	if err := s.Adopt(); err != nil {
		t.Errorf("nothing to ask: %v", err)
	}
	allocate(t, s, "a")
	allocate(t, s, "b")
	s.Live = func() ([]Lease, error) {
		return []Lease{{ID: "a", Addrs: []netip.Addr{netip.MustParseAddr("fd00::2")}}, *lease("z", "10.0.0.3")}, nil
	}
	if err := s.Adopt(); err != nil {
		t.Fatal(err)
	}
	if got := list(t, s); got != "a[10.0.0.2 fd00::2] z[10.0.0.3]" {
		t.Errorf("leases %s", got)
	}
	if got := allocate(t, s, "b"); fmt.Sprint(got.Addrs) != "[10.0.0.4 fd00::4]" {
		t.Errorf("gave %v", got.Addrs)
	}
}

// TestNoRange gives back without a range but does not give.
func TestNoRange(t *testing.T) {
	dir := t.TempDir()
	allocate(t, open(t, dir, "10.0.0.0/24"), "a")
	s := open(t, dir)
	if _, err := s.Allocate(Lease{ID: "b"}); err == nil || !strings.Contains(err.Error(), "no range is configured") {
		t.Errorf("allocate: %v", err)
	}
	if was, err := s.Release("a"); err != nil || was.ID != "a" {
		t.Errorf("release: %+v, %v", was, err)
	}
}

// TestReboot frees leases of an earlier boot but not what the kernel still has,
// and remembers them as used.
func TestReboot(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, "10.0.0.0/24")
	for _, id := range []string{"a", "b", "c"} {
		allocate(t, s, id)
	}
	s = open(t, dir, "10.0.0.0/24")
	s.boot = "later"
	s.Live = func() ([]Lease, error) { return []Lease{*lease("b", "10.0.0.3"), *lease("z", "10.0.0.9")}, nil }
	if got := list(t, s); got != "b[10.0.0.3] z[10.0.0.9]" {
		t.Errorf("leases %s", got)
	}
	if got := allocate(t, s, "d").Addrs[0].String(); got != "10.0.0.5" {
		t.Errorf("next address %s", got)
	}
	if got, err := Read(dir); err != nil || len(got) != 0 { // the real boot is not "later"
		t.Errorf("read %v, %v", got, err)
	}
}

// TestLost makes a new file from the kernel when the old one is deleted.
func TestLost(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, "10.0.0.0/24")
	allocate(t, s, "a")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	s.Live = func() ([]Lease, error) {
		return []Lease{{ID: "a", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}}}, nil
	}
	if got := allocate(t, s, "b").Addrs[0].String(); got != "10.0.0.3" {
		t.Errorf("gave %s", got)
	}
	// the holder itself gets its own address again and its name back
	if got := allocate(t, s, "a"); got.Addrs[0].String() != "10.0.0.2" || got.ContainerID != "c-a" {
		t.Errorf("gave %+v", got)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	s.Live = func() ([]Lease, error) { return nil, errors.New("no kernel") }
	if _, err := s.Allocate(Lease{ID: "c"}); err == nil || !strings.Contains(err.Error(), "no kernel") {
		t.Errorf("gave an address without knowing: %v", err)
	}
}

// TestCorrupt damages every line in turn. Whatever is lost, an address that is
// live is not given again, the damage is told, and the file is kept.
func TestCorrupt(t *testing.T) {
	for line := range 7 {
		dir := t.TempDir()
		var told bytes.Buffer
		s := open(t, dir, "10.0.0.0/24")
		s.Log = slog.New(slog.NewTextHandler(&told, nil))
		for _, id := range []string{"a", "b", "c", "d"} {
			allocate(t, s, id)
		}
		if _, err := s.Release("b"); err != nil {
			t.Fatal(err)
		}
		live, err := s.Leases()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, fileName)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if lines := bytes.SplitAfter(data, []byte("\n")); line < len(lines)-1 {
			lines[line][12] ^= 1
			data = bytes.Join(lines, nil)
		} else {
			data = nil // an empty file
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = Read(dir)
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) || corrupt.Path != path || corrupt.Bad != 1 {
			t.Errorf("line %d: read: %v", line, err)
		}
		s.Live = func() ([]Lease, error) { return live, nil }
		for i := range 10 {
			got := allocate(t, s, fmt.Sprintf("new%d", i))
			for _, l := range live {
				if slices.Contains(l.Addrs, got.Addrs[0]) {
					t.Errorf("line %d: gave %s, which is live", line, got.Addrs[0])
				}
			}
		}
		if !strings.Contains(told.String(), "lease file "+path+" is damaged in 1 lines") {
			t.Errorf("line %d: told %q", line, &told)
		}
		if kept, err := os.ReadFile(filepath.Join(dir, corruptName)); err != nil || !bytes.Equal(kept, data) {
			t.Errorf("line %d: kept %q, %v", line, kept, err)
		}
		if _, err := Read(dir); err != nil {
			t.Errorf("line %d: after mending: %v", line, err)
		}
		if got := list(t, s); !strings.Contains(got, "a[10.0.0.2]") || !strings.Contains(got, "c[10.0.0.4]") || !strings.Contains(got, "d[10.0.0.5]") {
			t.Errorf("line %d: lost a lease: %s", line, got)
		}
	}
}

// TestCrash ends every change of a random history at every byte that it writes,
// and goes on from there: the store is as before the change or as after it.
func TestCrash(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	path := filepath.Join(dir, fileName)
	s := open(t, dir, "10.0.0.0/28", "fd00::/64")
	allocate(t, s, "0")
	for step := range 24 {
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		was := list(t, s)
		id := fmt.Sprint(random.IntN(12))
		change := func() {
			if _, err := s.Release(id); err != nil {
				t.Fatal(err)
			}
		}
		if step%2 == 0 {
			change = func() { allocate(t, s, id) }
		}
		change()
		is := list(t, s)
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(after, before) {
			t.Fatalf("step %d: the file was not appended to", step)
		}
		for cut := len(before); cut < len(after); cut++ {
			if err := os.WriteFile(path, after[:cut], 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := Read(dir); err != nil || text(got) != was {
				t.Fatalf("step %d cut at %d: %s, %v\nwant %s", step, cut, text(got), err, was)
			}
			change() // again, by the next process
			if got := list(t, s); got != is {
				t.Fatalf("step %d again after cut at %d: %s\nwant %s", step, cut, got, is)
			}
			if data, err := os.ReadFile(path); err != nil || len(bytes.Split(data, []byte("\n"))) != len(bytes.Split(after, []byte("\n"))) {
				t.Fatalf("step %d again after cut at %d: file %q, %v", step, cut, data, err)
			}
		}
		if err := os.WriteFile(path, after, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStoreRandom compares with a naive model over a long random history with
// rewrites of the file in it.
func TestStoreRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	s := open(t, dir, "10.0.0.0/27")
	model, held := newQueue(s.Ranges[0]), map[string]netip.Addr{}
	largest, smaller := 0, 0
	for step := range 1500 {
		id := fmt.Sprint(random.IntN(40))
		if random.IntN(2) == 0 {
			was, err := s.Release(id)
			if addr, ok := held[id]; err != nil || ok != (was.ID == id) || ok && was.Addrs[0] != addr {
				t.Fatalf("step %d: released %+v, %v", step, was, err)
			} else if ok {
				model = append(model, addr)
				delete(held, id)
			}
		} else {
			got, err := s.Allocate(Lease{ID: id})
			addr, ok := held[id]
			var full *FullError
			switch {
			case ok && (err != nil || got.Addrs[0] != addr):
				t.Fatalf("step %d: %+v, %v, want %s again", step, got, err, addr)
			case !ok && len(model) == 0 && !errors.As(err, &full):
				t.Fatalf("step %d: %+v, %v, want full", step, got, err)
			case !ok && len(model) > 0 && (err != nil || got.Addrs[0] != model[0]):
				t.Fatalf("step %d: %+v, %v, want %s", step, got, err, model[0])
			case !ok && len(model) > 0:
				held[id], model = model[0], model[1:]
			}
		}
		info, err := os.Stat(filepath.Join(dir, fileName))
		if err != nil {
			t.Fatal(err)
		}
		if int(info.Size()) < largest/2 {
			largest = 0
			smaller++
		}
		largest = max(largest, int(info.Size()))
	}
	if smaller == 0 || largest > 200*(slack+200) {
		t.Errorf("the file was rewritten %d times and grew to %d bytes", smaller, largest)
	}
	leases, err := Read(dir)
	if err != nil || len(leases) != len(held) {
		t.Errorf("at the end %d leases, want %d, %v", len(leases), len(held), err)
	}
}

// TestProcesses lets processes take and give back addresses while they are killed
// at any moment, and looks at the end that the file is whole, that no address has
// two holders, and that everybody's last address is still his.
func TestProcesses(t *testing.T) {
	dir := t.TempDir()
	var all sync.WaitGroup
	for p := range 4 {
		all.Go(func() {
			for round := range 10 {
				cmd := exec.Command(os.Args[0], "-test.run=^TestChurn$")
				cmd.Env = append(os.Environ(), "IPAM_CHURN="+dir, fmt.Sprintf("IPAM_WHO=%d", p))
				if err := cmd.Start(); err != nil {
					t.Error(err)
					return
				}
				time.AfterFunc(time.Duration(10+7*round+3*p)*time.Millisecond, func() { cmd.Process.Kill() })
				cmd.Wait()
			}
		})
	}
	all.Wait()
	s := open(t, dir, "10.0.0.0/24", "fd00::/64")
	leases, err := s.Leases()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, corruptName)); err == nil {
		t.Error("the file was damaged")
	}
	holders := map[netip.Addr]string{}
	for _, l := range leases {
		for _, addr := range l.Addrs {
			if other, ok := holders[addr]; ok {
				t.Errorf("%s held by %s and %s", addr, other, l.ID)
			}
			holders[addr] = l.ID
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d leases, %d lines", len(leases), bytes.Count(data, []byte("\n")))
	if bytes.Count(data, []byte("\n")) < 10 {
		t.Error("the processes did nothing")
	}
}

// TestChurn is the process of TestProcesses: it never ends by itself.
func TestChurn(t *testing.T) {
	dir, who := os.Getenv("IPAM_CHURN"), os.Getenv("IPAM_WHO")
	if dir == "" {
		return // only a process of TestProcesses has something to do here
	}
	s := open(t, dir, "10.0.0.0/24", "fd00::/64")
	for i := 0; ; i++ {
		id := fmt.Sprintf("%s-%d", who, i%20)
		first := allocate(t, s, id)
		if again := allocate(t, s, id); !slices.Equal(first.Addrs, again.Addrs) {
			panic("lease changed hands")
		}
		if i%3 != 0 {
			if _, err := s.Release(id); err != nil {
				panic(err)
			}
		}
	}
}

// TestConcurrent has 200 ask at once, as a node that starts 200 pods does.
func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, "10.0.0.0/24", "fd00::/64")
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() { allocate(t, s, fmt.Sprint(i)) })
	}
	all.Wait()
	leases, err := Read(dir)
	seen := map[netip.Addr]bool{}
	for _, l := range leases {
		seen[l.Addrs[0]], seen[l.Addrs[1]] = true, true
	}
	if err != nil || len(leases) != 200 || len(seen) != 400 {
		t.Errorf("%d leases, %d addresses, %v", len(leases), len(seen), err)
	}
}

// BenchmarkAllocate is one Allocate and one Release on a node with 200 pods, after many others.
func BenchmarkAllocate(b *testing.B) {
	for name, ranges := range map[string][]string{"IPv4": {"10.0.0.0/24"}, "dual-stack": {"10.0.0.0/24", "fd00::/64"}} {
		b.Run(name, func(b *testing.B) {
			s := open(b, b.TempDir(), ranges...)
			n := 0
			turn := func() {
				n++
				allocate(b, s, fmt.Sprint(n))
				if n <= 200 {
					return
				}
				if _, err := s.Release(fmt.Sprint(n - 200)); err != nil {
					b.Fatal(err)
				}
			}
			for range 1000 {
				turn()
			}
			b.ReportAllocs()
			for b.Loop() {
				turn()
			}
		})
	}
}

// TestExclusive lets one at a time at an attachment, others at theirs meanwhile, and needs no more files.
func TestExclusive(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ipam")
	s := open(t, dir, "10.0.0.0/24")
	done, err := s.Exclusive("a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := s.Exclusive("b")
	if err != nil {
		t.Fatal(err)
	}
	allocate(t, s, "a") // the file itself is free
	got := make(chan func())
	go func() {
		second, err := s.Exclusive("a")
		if err != nil {
			t.Error(err)
		}
		got <- second
	}()
	other()
	select {
	case <-got:
		t.Fatal("two at one attachment")
	case <-time.After(20 * time.Millisecond): // enough for a lock that does not hold to be seen
	}
	done()
	(<-got)()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("files %v, %v", entries, err)
	}
	if _, err := open(t, "/dev/null/x", "10.0.0.0/24").Exclusive("a"); err == nil {
		t.Error("locked where there can be no file")
	}
}

// TestHalfRewritten takes away what a writer left that died while it made a new file.
func TestHalfRewritten(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, "10.0.0.0/24")
	allocate(t, s, "a")
	if err := os.WriteFile(filepath.Join(dir, tmpName), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := list(t, s); got != "a[10.0.0.2]" {
		t.Errorf("leases %s", got)
	}
	if _, err := os.Stat(filepath.Join(dir, tmpName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the half file is there: %v", err)
	}
}

// TestNoRoomToRewrite: a change that is in the file has happened, also while the disk has no room for the new file that is due.
func TestNoRoomToRewrite(t *testing.T) {
	if os.Geteuid() != 0 {
		testnet.Skip(t, "needs root to mount a small disk")
	}
	dir := t.TempDir()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread has mounts of its own, and ends
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")
		}
		if err == nil {
			err = unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k")
		}
		if err == nil {
			err = rewriteWithoutRoom(dir)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func rewriteWithoutRoom(dir string) error {
	s, err := New(Config{Dir: dir, Ranges: prefixes("10.0.0.0/24")})
	if err != nil {
		return err
	}
	change := func(id string) error {
		_, err := s.Allocate(Lease{ID: id})
		if err == nil {
			_, err = s.Release(id)
		}
		return err
	}
	for range slack/2 - 2 { // nearly as many lines as make a new file due
		if err := change("a"); err != nil {
			return err
		}
	}
	for i := 0; ; i++ { // as long as the last block has no room for some more lines
		info, err := os.Stat(s.path(fileName))
		if err != nil {
			return err
		}
		if info.Size()%4096 < 2048 {
			break
		}
		if _, err := s.Allocate(Lease{ID: fmt.Sprint("held", i), PodName: strings.Repeat("x", 200)}); err != nil {
			return err
		}
	}
	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		return err
	}
	defer ballast.Close()
	for err == nil {
		_, err = ballast.Write(make([]byte, 4096))
	}
	for range 6 {
		if err := change("late"); err != nil {
			return err
		}
	}
	if err := ballast.Truncate(0); err != nil {
		return err
	}
	if err := change("late"); err != nil {
		return err
	}
	data, err := os.ReadFile(s.path(fileName))
	if lines := bytes.Count(data, []byte("\n")); err == nil && lines > slack/2 {
		err = fmt.Errorf("with room again the file has %d lines", lines)
	}
	return err
}
