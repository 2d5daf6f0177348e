// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package defaults

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// defaultMode is the mode of files that a volume makes when none is given.
const defaultMode int32 = 0o644

func pod(p *corev1.Pod) {
	// Only a pod's, not a template's: a template's requests may still be
	// changed by what makes pods of it.
	requests(p.Spec.Containers)
	requests(p.Spec.InitContainers)
	fillPtr(&p.Spec.EnableServiceLinks, corev1.DefaultEnableServiceLinks)
	podSpec(&p.Spec)
}

// requests sets what a container with limits does not request to its limits.
func requests(containers []corev1.Container) {
	for i := range containers {
		r := &containers[i].Resources
		for name, limit := range r.Limits {
			if _, ok := r.Requests[name]; ok {
				continue
			}
			if r.Requests == nil {
				r.Requests = corev1.ResourceList{}
			}
			r.Requests[name] = limit.DeepCopy()
		}
	}
}

// podSpec sets the defaults that pods and templates share.
func podSpec(s *corev1.PodSpec) {
	fill(&s.DNSPolicy, corev1.DNSClusterFirst)
	fill(&s.RestartPolicy, corev1.RestartPolicyAlways)
	fill(&s.SchedulerName, corev1.DefaultSchedulerName)
	fillPtr(&s.SecurityContext, corev1.PodSecurityContext{})
	fillPtr(&s.TerminationGracePeriodSeconds, int64(corev1.DefaultTerminationGracePeriodSeconds))
	for i := range s.Volumes {
		volume(&s.Volumes[i].VolumeSource)
	}
	for i := range s.InitContainers {
		container(&s.InitContainers[i], s.HostNetwork)
	}
	for i := range s.Containers {
		container(&s.Containers[i], s.HostNetwork)
	}
	for i := range s.EphemeralContainers {
		// The two types have the same fields, by contract of the API.
		c := corev1.Container(s.EphemeralContainers[i].EphemeralContainerCommon)
		container(&c, false)
		s.EphemeralContainers[i].EphemeralContainerCommon = corev1.EphemeralContainerCommon(c)
	}
	resourceList(s.Overhead)
}

func container(c *corev1.Container, hostNetwork bool) {
	fill(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	fill(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	fill(&c.ImagePullPolicy, pullPolicy(c.Image))
	for i := range c.Ports {
		fill(&c.Ports[i].Protocol, corev1.ProtocolTCP)
		if hostNetwork {
			fill(&c.Ports[i].HostPort, c.Ports[i].ContainerPort)
		}
	}
	for i := range c.Env {
		if from := c.Env[i].ValueFrom; from != nil && from.FieldRef != nil {
			fill(&from.FieldRef.APIVersion, "v1")
		}
	}
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		probe(p)
	}
	if c.Lifecycle != nil {
		for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			if h != nil {
				httpGet(h.HTTPGet)
			}
		}
	}
	resourceList(c.Resources.Limits)
	resourceList(c.Resources.Requests)
}

// pullPolicy is Always for an image that may move: one with the tag latest,
// given or implied.
func pullPolicy(image string) corev1.PullPolicy {
	last := image[strings.LastIndexByte(image, '/')+1:]
	name, tag, tagged := strings.Cut(last, ":")
	switch {
	case strings.Contains(last, "@"), name == "":
		return corev1.PullIfNotPresent
	case !tagged, tag == "latest":
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

func probe(p *corev1.Probe) {
	if p == nil {
		return
	}
	fill(&p.TimeoutSeconds, 1)
	fill(&p.PeriodSeconds, 10)
	fill(&p.SuccessThreshold, 1)
	fill(&p.FailureThreshold, 3)
	httpGet(p.HTTPGet)
	if p.GRPC != nil {
		fillPtr(&p.GRPC.Service, "")
	}
}

func httpGet(h *corev1.HTTPGetAction) {
	if h != nil {
		fill(&h.Path, "/")
		fill(&h.Scheme, corev1.URISchemeHTTP)
	}
}

func volume(v *corev1.VolumeSource) {
	if *v == (corev1.VolumeSource{}) {
		v.EmptyDir = &corev1.EmptyDirVolumeSource{}
	}
	if v.HostPath != nil {
		fillPtr(&v.HostPath.Type, corev1.HostPathUnset)
	}
	if v.ConfigMap != nil {
		fillPtr(&v.ConfigMap.DefaultMode, defaultMode)
	}
	if v.Secret != nil {
		fillPtr(&v.Secret.DefaultMode, defaultMode)
	}
	if v.DownwardAPI != nil {
		fillPtr(&v.DownwardAPI.DefaultMode, defaultMode)
	}
	if v.Projected != nil {
		fillPtr(&v.Projected.DefaultMode, defaultMode)
	}
}

// resourceList rounds quantities up to a thousandth, the finest that the API
// keeps.
func resourceList(list corev1.ResourceList) {
	for name, quantity := range list {
		quantity.RoundUp(resource.Milli)
		list[name] = quantity
	}
}
