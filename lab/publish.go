// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes"
)

const (
	publishTimeout    = 10 * time.Second
	publishRetryFirst = 100 * time.Millisecond
	publishRetryMost  = 5 * time.Second
)

// publisher writes one pod's status to the API: at once when it changes, never otherwise, and only the last of several changes when the
// API is slower than the pod. Its goroutine is the only writer, so the pod's worker never waits for the API.
type publisher struct {
	client kubernetes.Interface
	log    *slog.Logger

	mu    sync.Mutex
	pod   *corev1.Pod // the newest version known, from the watch or from an own write
	state *podState   // what to publish
	wake  chan struct{}
}

func newPublisher(client kubernetes.Interface, pod *corev1.Pod, log *slog.Logger) *publisher {
	return &publisher{client: client, log: log, pod: pod, wake: make(chan struct{}, 1)}
}

// seen takes a version of the pod from the watch.
func (p *publisher) seen(pod *corev1.Pod) {
	p.mu.Lock()
	if resourceVersion(pod) > resourceVersion(p.pod) {
		p.pod = pod
	}
	p.mu.Unlock()
	poke(p.wake)
}

// newest returns the newest version of the pod.
func (p *publisher) newest() *corev1.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pod
}

// resourceVersion is an object's resource version as the number that Kubernetes defines it to be.
func resourceVersion(pod *corev1.Pod) uint64 {
	n, _ := strconv.ParseUint(pod.ResourceVersion, 10, 64)
	return n
}

// set gives the state to publish from now on. The publisher keeps it.
func (p *publisher) set(s podState) {
	s.containers = slices.Clone(s.containers)
	p.mu.Lock()
	p.state = &s
	p.mu.Unlock()
	poke(p.wake)
}

// poke puts a value into a channel of capacity one unless it has one.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run publishes until ctx ends.
func (p *publisher) run(ctx context.Context) {
	retry := publishRetryFirst
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		}
		for {
			err := p.flush(ctx)
			if err == nil || ctx.Err() != nil {
				retry = publishRetryFirst
				break
			}
			if retry == publishRetryFirst {
				p.log.Warn("publish pod status", "err", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(retry):
			}
			retry = min(2*retry, publishRetryMost)
		}
	}
}

// flush publishes the state if the API shows another one. A pod that is gone, or was replaced by one of the same name, is no error.
func (p *publisher) flush(ctx context.Context) error {
	p.mu.Lock()
	pod, state := p.pod, p.state
	p.mu.Unlock()
	if state == nil {
		return nil
	}
	status := podStatus(pod, *state)
	if sameStatus(pod.Status, status) {
		return nil
	}
	patch, err := statusPatch(pod, status)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	got, err := p.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return nil
	case err != nil:
		return fmt.Errorf("patch status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	p.mu.Lock()
	if got.UID == p.pod.UID && resourceVersion(got) > resourceVersion(p.pod) {
		p.pod = got
	}
	p.mu.Unlock()
	return nil
}

// statusPatch is the strategic merge patch from the pod's status to the given one. It names the pod's UID, which makes the API refuse it
// for another pod of the same name.
func statusPatch(pod *corev1.Pod, status corev1.PodStatus) ([]byte, error) {
	before, err := json.Marshal(corev1.Pod{Status: pod.Status})
	if err != nil {
		return nil, fmt.Errorf("encode status: %w", err)
	}
	after, err := json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: pod.UID}, Status: status})
	if err != nil {
		return nil, fmt.Errorf("encode status: %w", err)
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("make status patch: %w", err)
	}
	return patch, nil
}

// remove deletes the pod object, which its node does last, and tries until it is gone or ctx ends.
func (p *publisher) remove(ctx context.Context) {
	pod := p.newest()
	now := int64(0)
	opts := metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &pod.UID}}
	for retry := publishRetryFirst; ; retry = min(2*retry, publishRetryMost) {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, publishTimeout)
			defer cancel()
			if err := p.flush(ctx); err != nil {
				return err
			}
			return p.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, opts)
		}()
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) || ctx.Err() != nil {
			return
		}
		if retry == publishRetryFirst {
			p.log.Warn("remove pod object", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
	}
}
