// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// probeKind is which of a container's three probes.
type probeKind string

const (
	startupProbe   probeKind = "startup"
	readinessProbe probeKind = "readiness"
	livenessProbe  probeKind = "liveness"
)

// rampStart is the first wait after a try that failed before the probe has ever succeeded. A program that needs 300 ms to listen is ready
// after 300 ms, not after a whole period.
const rampStart = 100 * time.Millisecond

// judge turns the results of single tries into a probe's verdict. It is a value without a clock: the caller says when each try was made.
type judge struct {
	kind      probeKind
	period    time.Duration
	successes int // needed in a row
	failures  int // needed in a row

	good, bad int
	verdict   bool // as last told
	known     bool // some verdict was told
	ever      bool // some try has succeeded
	ramp      time.Duration
	count     time.Time // when the next failure counts, while the tries are closer together than the period
}

// newJudge reads a probe's thresholds, with the defaults that the API also sets.
func newJudge(k probeKind, p *corev1.Probe) *judge {
	return &judge{
		kind:      k,
		period:    time.Duration(orDefault(p.PeriodSeconds, 10)) * time.Second,
		successes: int(orDefault(p.SuccessThreshold, 1)),
		failures:  int(orDefault(p.FailureThreshold, 3)),
		ramp:      rampStart,
	}
}

func orDefault(n, d int32) int32 {
	if n <= 0 {
		return d
	}
	return n
}

// observe takes the result of a try made at the given time. changed says that the verdict is new, wait how long until the next try.
func (j *judge) observe(ok bool, at time.Time) (changed bool, wait time.Duration) {
	if ok {
		j.good, j.bad, j.ever = j.good+1, 0, true
		if j.good >= j.successes {
			changed = !j.known || !j.verdict
			j.known, j.verdict = true, true
		}
		return changed, j.period
	}
	j.good = 0
	wait = j.period
	early := j.kind != livenessProbe && !j.ever
	if !early || !at.Before(j.count) {
		j.bad++
		j.count = at.Add(j.period)
	}
	if early {
		// Tries between the periods' beats do not count as failures: the time that the thresholds give a program stays as written.
		wait = min(j.ramp, j.period)
		j.ramp *= 2
	}
	if j.bad >= j.failures {
		changed = !j.known || j.verdict
		j.known, j.verdict = true, false
	}
	return changed, wait
}

// probeResult is a changed verdict, or the text of a failure that is worth an event.
type probeResult struct {
	kind probeKind
	ok   bool
	text string
}

// runProbe makes tries until ctx ends and tells each change of the verdict.
func runProbe(ctx context.Context, k probeKind, p *corev1.Probe, try func(context.Context) error, tell func(probeResult)) {
	j := newJudge(k, p)
	timeout := time.Duration(orDefault(p.TimeoutSeconds, 1)) * time.Second
	timer := time.NewTimer(time.Duration(p.InitialDelaySeconds) * time.Second)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		tryCtx, cancel := context.WithTimeout(ctx, timeout)
		at := time.Now()
		err := try(tryCtx)
		cancel()
		if ctx.Err() != nil {
			return
		}
		changed, wait := j.observe(err == nil, at)
		if changed {
			r := probeResult{kind: k, ok: err == nil}
			if err != nil {
				r.text = err.Error()
			}
			tell(r)
		}
		timer.Reset(max(0, time.Until(at.Add(wait))))
	}
}

// dialFunc opens a connection from the node's network namespace.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// execFunc runs a command in the container and returns its exit code and the beginning of its output.
type execFunc func(ctx context.Context, command []string) (int, string, error)

// handler is the action of a probe or a hook.
type handler struct {
	http *corev1.HTTPGetAction
	tcp  *corev1.TCPSocketAction
	exec *corev1.ExecAction
	wait *corev1.SleepAction
}

// doer carries out the handlers of one container: network ones from the node to the pod's address, commands in the pod.
type doer struct {
	spec *corev1.Container
	addr netip.Addr
	dial dialFunc
	exec execFunc
}

// do returns nil when the handler succeeded before ctx ended.
func (d doer) do(ctx context.Context, h handler) error {
	switch {
	case h.http != nil:
		return d.get(ctx, h.http)
	case h.tcp != nil:
		return d.connect(ctx, h.tcp)
	case h.exec != nil:
		code, out, err := d.exec(ctx, h.exec.Command)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("command %q timed out", strings.Join(h.exec.Command, " "))
		case err != nil:
			return err
		case code != 0:
			return fmt.Errorf("command %q exited with %d: %s", strings.Join(h.exec.Command, " "), code, out)
		}
		return nil
	case h.wait != nil:
		select {
		case <-time.After(time.Duration(h.wait.Seconds) * time.Second):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errors.New("no action that process pods know: give httpGet, tcpSocket or exec")
}

func (d doer) host(name string) string {
	if name == "" {
		return d.addr.String()
	}
	return name
}

func (d doer) connect(ctx context.Context, a *corev1.TCPSocketAction) error {
	port, err := portNumber(d.spec, a.Port.StrVal, a.Port.IntVal)
	if err != nil {
		return err
	}
	c, err := d.dial(ctx, "tcp", net.JoinHostPort(d.host(a.Host), strconv.Itoa(int(port))))
	if err != nil {
		return err
	}
	return c.Close()
}

// maxProbeBody is how much of an answer is read before the connection is closed.
const maxProbeBody = 10 << 10

func (d doer) get(ctx context.Context, a *corev1.HTTPGetAction) error {
	port, err := portNumber(d.spec, a.Port.StrVal, a.Port.IntVal)
	if err != nil {
		return err
	}
	scheme := strings.ToLower(string(a.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	url := scheme + "://" + net.JoinHostPort(d.host(a.Host), strconv.Itoa(int(port))) + "/" + strings.TrimPrefix(a.Path, "/")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "kube-probe/fairlead")
	req.Header.Set("Accept", "*/*")
	for _, h := range a.HTTPHeaders {
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
		} else {
			req.Header.Add(h.Name, h.Value)
		}
	}
	transport := &http.Transport{
		DialContext:       d.dial,
		DisableKeepAlives: true, // every try is a new connection: that is what it is to prove
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
	}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, CheckRedirect: sameHost}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, maxProbeBody))
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("HTTP probe failed with statuscode: %d", resp.StatusCode)
	}
	return nil
}

// sameHost follows redirects that stay on the host; one that leads away is a success as it is.
func sameHost(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 || req.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	return nil
}
