// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead/fairlead/checkpoint"
	"github.com/fairlead/fairlead/config"
	"github.com/fairlead/fairlead/model"
)

// disk is a node's state on disk, with a source that says what is to be on it.
type disk struct {
	*kept
	t   *testing.T
	cfg *config.Agent
	log strings.Builder

	mu     sync.Mutex
	listed bool
	world  *model.Builder
	saves  int
}

func newDisk(t *testing.T) *disk {
	d := &disk{t: t, cfg: &config.Agent{Node: "n1", State: t.TempDir()}, world: model.NewBuilder(model.Config{Self: "n1"})}
	d.kept = newKept(d.cfg, slog.New(slog.NewTextHandler(&d.log, nil)))
	return d
}

func (d *disk) Listed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.listed
}

func (d *disk) Save(to model.Objects) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.saves++
	for _, n := range d.world.Build().Nodes.All() {
		to.SetNode(*n)
	}
}

// add makes the state another one, and returns its snapshot.
func (d *disk) add(node string) *model.Snapshot {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.world.SetNode(model.Node{Name: node})
	return d.world.Build()
}

// onDisk are the nodes of the file.
func (d *disk) onDisk() string {
	b := model.NewBuilder(model.Config{})
	if _, err := checkpoint.Read(d.path, "n1", d.boot, b); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "nothing"
		}
		d.t.Fatal(err)
	}
	return b.Build().String()
}

// TestFollow: the state is written a moment after the first lists and after a change, but at most every ten seconds, only when it has changed, and at the end; and
// never while it is only what was read.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, state := newDisk(t), NewState()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { d.follow(ctx, state, d); close(ended) }()
		saves := func(when string, want int) {
			t.Helper()
			synctest.Wait()
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.saves != want {
				t.Errorf("%s: written %d times, want %d", when, d.saves, want)
			}
		}
		state.acknowledge(d.add("n1"), 0)
		time.Sleep(time.Hour)
		saves("not the API server's", 0)
		d.mu.Lock()
		d.listed = true
		d.mu.Unlock()
		state.acknowledge(d.add("n2"), 0)
		time.Sleep(keepFirst + time.Millisecond)
		saves("after the first lists", 1)
		time.Sleep(time.Hour)
		saves("without a change", 1)
		state.acknowledge(d.add("n3"), 0)
		time.Sleep(keepSettle + time.Millisecond)
		saves("after a change", 2)
		for i := range 100 {
			state.acknowledge(d.add("m"+string(rune('a'+i%26))+string(rune('a'+i/26))), 0)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		d.mu.Lock()
		n := d.saves
		d.mu.Unlock()
		if n < 11 || n > 13 {
			t.Errorf("in 100 s of changes written %d times", n-2)
		}
		time.Sleep(time.Hour)
		last := d.add("at-the-end")
		state.acknowledge(last, 0)
		cancel()
		<-ended
		if !strings.Contains(d.onDisk(), "node at-the-end") {
			t.Errorf("on disk: %s", d.onDisk())
		}
		if d.log.Len() > 0 {
			t.Errorf("logged:\n%s", &d.log)
		}
	})
}

// TestNothingToWriteAtTheEnd: an agent that heard nothing writes nothing, and ends.
func TestNothingToWriteAtTheEnd(t *testing.T) {
	d := newDisk(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d.follow(ctx, NewState(), d)
	if got := d.onDisk(); got != "nothing" {
		t.Error(got)
	}
}

// TestUnwritable: a state that cannot be written is named once in the log, and in status until it can.
func TestUnwritable(t *testing.T) {
	d := newDisk(t)
	d.add("n1")
	if err := os.Mkdir(d.path+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if d.write(d.Save) == nil {
			t.Fatal("written")
		}
	}
	if got := d.problem(); !strings.HasPrefix(got, "the state is not kept on disk: write state: ") {
		t.Errorf("status: %q", got)
	}
	if n := strings.Count(d.log.String(), "\n"); n != 1 {
		t.Errorf("logged %d lines:\n%s", n, &d.log)
	}
	if err := os.Remove(d.path + ".new"); err != nil {
		t.Fatal(err)
	}
	if err := d.write(d.Save); err != nil || d.problem() != "" || d.saved().IsZero() {
		t.Errorf("%v; %q; of %v", err, d.problem(), d.saved())
	}
}

// TestStartWithWhatIsThere: a start takes what is on disk, or goes on without and says why.
func TestStartWithWhatIsThere(t *testing.T) {
	d := newDisk(t)
	view := model.Config{Self: "n1"}
	if b := d.read(view); b != nil || d.log.Len() > 0 || !d.saved().IsZero() {
		t.Errorf("without a file: %v, of %v; logged %q", b, d.saved(), &d.log)
	}
	d.add("n2")
	if err := d.write(d.Save); err != nil {
		t.Fatal(err)
	}
	next := newDisk(t)
	next.path = d.path
	b := next.read(view)
	if b == nil || b.Build().Nodes.Len() != 1 || next.saved().Unix() != d.saved().Unix() || next.problem() != "" {
		t.Fatalf("%v, of %v; %q", b, next.saved(), next.problem())
	}
	if err := os.WriteFile(d.path, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b := next.read(view); b != nil {
		t.Error("nonsense is used")
	}
	if got := next.problem(); !strings.Contains(got, "the start was without a state on disk: state on disk "+d.path+" cannot be used: it is no state of Fairlead's; it is now checkpoint.corrupt") {
		t.Errorf("status: %q", got)
	}
	if n := strings.Count(next.log.String(), "\n"); n != 1 {
		t.Errorf("logged %d lines:\n%s", n, &next.log)
	}
}

// What was written while another program was the service proxy says of every Service that it is that program's. Who is the proxy now starts without it,
// and whoever is not anew goes on with what a proxy wrote.
func TestStartInAnotherRole(t *testing.T) {
	for _, tt := range []struct {
		before, now model.Roles
		kept        bool
	}{{0, 0, true}, {0, model.Proxy, true}, {model.Proxy, model.Proxy, true}, {model.Proxy, 0, false}, {model.Network, 0, true}} {
		d := newDisk(t)
		d.left = tt.before
		if err := d.write(func(to model.Objects) {
			to.SetService(model.ServiceSpec{Name: model.Name{Namespace: "shop", Name: "web"}})
		}); err != nil {
			t.Fatal(err)
		}
		b := d.read(model.Config{Self: "n1", Left: tt.now})
		if (b != nil) != tt.kept {
			t.Errorf("roles left %b, then %b: kept %t", tt.before, tt.now, b != nil)
			continue
		}
		if b != nil && b.Build().Services.Len() != 1 {
			t.Errorf("roles left %b, then %b: %s", tt.before, tt.now, b.Build())
		}
	}
}
