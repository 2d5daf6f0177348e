// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	layout "github.com/fairlead/fairlead/cluster"
)

// fromDisk fails the test unless a node's agent says that it works from the state on disk, and why.
func (w *world) fromDisk(t testing.TB, node string) {
	t.Helper()
	eventually(t, 30*time.Second, "reason in the status", func() error {
		r := w.report(t, node)
		if r.KeptOf.IsZero() || len(r.DNS.Addresses) == 0 || r.Services == 0 || !strings.Contains(strings.Join(r.Off, "\n"), "API server") {
			return fmt.Errorf("it says that it works from %v, %d Services, DNS on %v; off: %q", r.KeptOf, r.Services, r.DNS.Addresses, r.Off)
		}
		return nil
	})
}

// TestStartsWithoutAPIServer: with the API server away, a node's agent is killed with -9 and starts again from the state on disk: it adopts the kernel's
// state as it is, answers names, and says what it works from. What changed while nobody could say so is there once the API server is.
func TestStartsWithoutAPIServer(t *testing.T) {
	w := shared(t)
	const node = "n2"
	pod := w.clientOn(t, node)
	kept := filepath.Join(string(w.dir.Node(node)), "checkpoint")
	w.apply(t, `
apiVersion: v1
kind: Service
metadata: {name: kept, namespace: shop}
spec: {selector: {app: catalog}, ports: [{port: 80, targetPort: http}]}
`)
	t.Cleanup(func() {
		w.run(t, "", "fairlead-server", "kubectl", "-n", namespace, "delete", "service", "kept", "--ignore-not-found")
	})
	made := time.Now()
	eventually(t, 10*time.Second, "the Service", func() error { return failed(w.exec(t, pod, "shop", "get", "http://kept/self")) })
	eventually(t, 30*time.Second, "state on disk", func() error {
		info, err := os.Stat(kept)
		if err == nil && info.ModTime().Before(made) {
			err = fmt.Errorf("it is of %v", info.ModTime())
		}
		return err
	})
	before, orders := w.ruleset(t, node), w.service(t, "orders").Spec.ClusterIP

	w.act(t, layout.ActionStop, "apiserver")
	t.Cleanup(func() { w.client.Child(context.Background(), layout.ActionStart, "apiserver") })
	// The agent alone: its sockets are held, and what is asked meanwhile waits.
	connections := w.start(t, pod, "get", "-rate", "200", "-duration", "2m", "--fresh-conn", "http://"+orders+":9000/self")
	stop := w.flood(t, pod, 500)
	pid := w.report(t, node).PID
	killed := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.next(t, node, pid)
	back := []time.Duration{time.Since(killed)}
	w.fromDisk(t, node)
	stop().judge(t, "kill -9 without an API server", 500, back)

	// And with its holder, as after an update of the program by somebody in a hurry.
	pid = w.child(t, "agent-"+node).PID
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.ready(t, node, pid)
	w.fromDisk(t, node)
	s := connections.stop(t)
	t.Logf("connections by ClusterIP: %s", s)
	if s.Failed > 0 {
		t.Errorf("connections by ClusterIP: %d of %d failed", s.Failed, s.Sent)
	}
	for range 20 {
		if r := w.exec(t, pod, "getent", "hosts", "kept"); r.code != 0 {
			t.Errorf("the name is not answered from the state on disk: %s", r)
		}
	}
	if d := difference(before, w.ruleset(t, node)); d != "" {
		t.Errorf("the start changed what was there:\n%s", d)
	}

	w.act(t, layout.ActionStart, "apiserver")
	eventually(t, 30*time.Second, "API server", func() error {
		return w.kube.CoreV1().Services(namespace).Delete(context.Background(), "kept", metav1.DeleteOptions{})
	})
	eventually(t, 30*time.Second, "API server's state on the node", func() error {
		if r := w.report(t, node); !r.KeptOf.IsZero() || len(r.Waiting) > 0 {
			return fmt.Errorf("it works from the state on disk of %v; off: %q", r.KeptOf, r.Off)
		}
		if r := w.exec(t, pod, "getent", "hosts", "kept"); r.code == 0 {
			return fmt.Errorf("the removed Service is still there: %s", r)
		}
		return nil
	})
}
