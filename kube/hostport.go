// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/model"
)

// hostPort is a container's port that asks for one of the node, as the API has it and as far as it can be read.
type hostPort struct {
	*corev1.ContainerPort
	model.HostPort
}

// hostPorts yields the host ports of the containers that live as long as the pod: those and the restartable init containers. A pod of the node's
// network has its ports there already, and a host port of zero is none.
func hostPorts(spec *corev1.PodSpec, yield func(hostPort)) {
	if spec.HostNetwork {
		return
	}
	of := func(c *corev1.Container) {
		for i := range c.Ports {
			p := &c.Ports[i]
			if p.HostPort == 0 {
				continue
			}
			h := hostPort{ContainerPort: p, HostPort: model.HostPort{Port: uint16(p.HostPort), Target: uint16(p.ContainerPort)}}
			h.HostPort.Protocol, _ = model.ParseProtocol(string(p.Protocol))
			h.Addr, _ = netip.ParseAddr(p.HostIP)
			yield(h)
		}
	}
	for i := range spec.InitContainers {
		if c := &spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			of(c)
		}
	}
	for i := range spec.Containers {
		of(&spec.Containers[i])
	}
}

// flaw says why a host port cannot be used; empty if it can.
func (h hostPort) flaw() string {
	p := h.ContainerPort
	switch {
	case h.HostPort.Protocol == 0:
		return fmt.Sprintf("protocol %.20q of hostPort %d is unknown", p.Protocol, p.HostPort)
	case !validPort(p.HostPort):
		return fmt.Sprintf("hostPort %d is no port", p.HostPort)
	case !validPort(p.ContainerPort):
		return fmt.Sprintf("containerPort %d of hostPort %d is no port", p.ContainerPort, p.HostPort)
	case p.HostIP != "" && (!h.Addr.IsValid() || h.Addr.Zone() != ""):
		return fmt.Sprintf("hostIP %.60q of hostPort %d is no address", p.HostIP, p.HostPort)
	case h.Addr.Is4In6():
		return fmt.Sprintf("hostIP %q of hostPort %d is an IPv4 address written as IPv6; write %s", p.HostIP, p.HostPort, h.Addr.Unmap())
	}
	return ""
}

// podFlaws are what pod leaves out, and what leads nowhere: a port at an address of a family in which the pod has none.
func podFlaws(o *corev1.Pod) (f flaws) {
	hostPorts(&o.Spec, func(h hostPort) {
		if flaw := h.flaw(); flaw != "" {
			f = append(f, flaw)
			return
		}
		if !h.Addr.IsValid() {
			return
		}
		addrs := pod(o).Addrs // a pod without any may still get one
		if len(addrs) > 0 && !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Is4() == h.Addr.Is4() }) {
			f.add("hostIP %s of hostPort %d is of a family in which the pod has no address", h.Addr, h.HostPort.Port)
		}
	})
	return f
}
