// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	clusterDomain = "cluster.local"
	// below is what names of Services in the default namespace end with.
	below   = ".default.svc." + clusterDomain
	dnsPort = 53
)

// shape is what a world of the DNS experiments has: Services with an address, each with endpoints, and headless ones, each with pods.
type shape struct{ services, endpoints, headless, pods int }

func (h shape) String() string {
	return fmt.Sprintf("%s Services with %s endpoints and %s headless with %d", number(float64(h.services)), number(float64(h.services*h.endpoints)),
		number(float64(h.headless)), h.pods)
}

// dnsWorld is a world with a shape, and a question for each name in it.
type dnsWorld struct {
	*world
	questions []question
}

// namedWorld makes a world for a contender. Each has an API server of its own.
func (s *suite) namedWorld(ctx context.Context, name string, h shape) (_ *dnsWorld, err error) {
	progress("making %s for %s", h, name)
	dir, err := os.MkdirTemp(s.dir, "world-")
	if err != nil {
		return nil, fmt.Errorf("make directory of a world: %w", err)
	}
	base, err := newWorld(ctx, s.programs, dir)
	if err != nil {
		return nil, err
	}
	w := &dnsWorld{world: base}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if err := w.register(ctx); err != nil {
		return nil, err
	}
	return w, w.populate(ctx, h)
}

func (w *dnsWorld) populate(ctx context.Context, h shape) error {
	w.services = make([]virtual, h.services)
	w.questions = make([]question, h.services+h.headless)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(seeders)
	for i := range h.services {
		group.Go(func() (err error) {
			if w.services[i], err = w.addService(ctx, fmt.Sprintf("service-%05d", i), h.endpoints); err != nil {
				return err
			}
			w.questions[i], err = newQuestion(w.services[i].name+below, typeA, rcodeSuccess, w.services[i].vip.Addr())
			return err
		})
	}
	for i := range h.headless {
		group.Go(func() (err error) {
			w.questions[h.services+i], err = w.addHeadless(ctx, fmt.Sprintf("headless-%04d", i), h.pods)
			return err
		})
	}
	return group.Wait()
}

// createHeadless makes a Service without address.
func (w *world) createHeadless(ctx context.Context, name string, selector map[string]string) error {
	_, err := w.client.CoreV1().Services(metav1.NamespaceDefault).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Selector: selector, Ports: []corev1.ServicePort{{Port: servicePort}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create service %s: %w", name, err)
	}
	return nil
}

// addHeadless makes a Service without address and without selector, and one slice with its endpoints.
func (w *world) addHeadless(ctx context.Context, name string, endpoints int) (question, error) {
	if err := w.createHeadless(ctx, name, nil); err != nil {
		return question{}, err
	}
	slice, err := w.addSlice(ctx, name, name+"-1", endpoints)
	if err != nil {
		return question{}, err
	}
	var addrs []netip.Addr
	for _, e := range slice.Endpoints {
		addrs = append(addrs, netip.MustParseAddr(e.Addresses[0]))
	}
	return newQuestion(name+below, typeA, rcodeSuccess, addrs...)
}

// zoneFile is the same zone for servers that read one.
func zoneFile(questions []question) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "$ORIGIN %s.\n$TTL 30\n", clusterDomain)
	b.WriteString("@ SOA ns.dns hostmaster 1 7200 1800 86400 5\n@ NS ns.dns\nns.dns A 192.168.78.1\n")
	for _, q := range questions {
		for _, a := range q.addrs {
			fmt.Fprintf(&b, "%s A %s\n", strings.TrimSuffix(q.name, "."+clusterDomain), netip.AddrFrom4(a))
		}
	}
	return b.Bytes()
}

// draws are questions in the order in which a load asks them: drawn at random, the same for the same questions.
func draws(questions []question, n int) []question {
	random := rand.New(rand.NewPCG(5, 6))
	out := make([]question, n)
	for i := range out {
		out[i] = questions[random.IntN(len(questions))]
	}
	return out
}

// saveQuestions writes questions to a file and returns its path.
func (s *suite) saveQuestions(name string, questions []question) (string, error) {
	var text bytes.Buffer
	if err := writeQuestions(&text, questions); err != nil {
		return "", err
	}
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, text.Bytes(), 0o644); err != nil {
		return "", fmt.Errorf("write questions: %w", err)
	}
	return path, nil
}

// exchangeDNS asks once, from the calling thread's namespace, and gives the whole answer.
func exchangeDNS(to netip.AddrPort, packet []byte, wait time.Duration) ([]byte, error) {
	fd, err := dial(unix.SOCK_DGRAM, to, wait)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if _, err := writeFD(fd, packet); err != nil {
		return nil, fmt.Errorf("send: %w", err)
	}
	buf := make([]byte, 4096)
	n, err := readFD(fd, buf)
	if err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	return buf[:n], nil
}

// awaitAnswers asks from a host until every question is answered right, or, of an echo, comes back.
func awaitAnswers(ctx context.Context, from *host, to netip.AddrPort, questions []question, echo bool, alive func() error) error {
	return from.Do(func() error {
		for i := range questions {
			q := &questions[i]
			for {
				msg, err := exchangeDNS(to, q.packet, 200*time.Millisecond)
				if err == nil && echo {
					err = q.echoed(msg)
				} else if err == nil {
					err = q.check(msg)
				}
				if err == nil {
					break
				}
				if ctx.Err() != nil {
					return fmt.Errorf("wait for the right answer to %s: %w; the last %w", q.name, ctx.Err(), err)
				}
				if err := alive(); err != nil {
					return err
				}
				time.Sleep(5 * time.Millisecond)
			}
		}
		return nil
	})
}
