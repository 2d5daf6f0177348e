// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// containers checks those that run side by side. grace is the pod's, in
// seconds.
func containers(list []corev1.Container, grace int64, path *field.Path) (errs field.ErrorList) {
	if len(list) == 0 {
		return field.ErrorList{field.Required(path, "")}
	}
	for i := range list {
		c, at := &list[i], path.Index(i)
		errs = append(errs, container(c, at)...)
		if named(list[:i], c.Name) {
			errs = append(errs, field.Duplicate(at.Child("name"), c.Name))
		}
		if c.RestartPolicy != nil {
			errs = append(errs, field.Forbidden(at.Child("restartPolicy"), "may not be set for non-init containers"))
		}
		errs = append(errs, probes(c, at)...)
		errs = append(errs, lifecycle(c.Lifecycle, grace, at.Child("lifecycle"))...)
	}
	return append(errs, hostPorts(list, path)...)
}

// initContainers checks those that run before, one after the other, and those
// among them that go on running (restartPolicy Always).
func initContainers(list, others []corev1.Container, grace int64, path *field.Path) (errs field.ErrorList) {
	for i := range list {
		c, at := &list[i], path.Index(i)
		errs = append(errs, container(c, at)...)
		if named(list[:i], c.Name) || named(others, c.Name) {
			errs = append(errs, field.Duplicate(at.Child("name"), c.Name))
		}
		if c.RestartPolicy != nil {
			errs = append(errs, oneOf(*c.RestartPolicy, at.Child("restartPolicy"), corev1.ContainerRestartPolicyAlways)...)
		}
		if restartable(c) {
			errs = append(errs, probes(c, at)...)
			errs = append(errs, lifecycle(c.Lifecycle, grace, at.Child("lifecycle"))...)
			continue
		}
		const message = "may not be set for init containers without restartPolicy=Always"
		if c.Lifecycle != nil {
			errs = append(errs, field.Forbidden(at.Child("lifecycle"), message))
		}
		if c.LivenessProbe != nil {
			errs = append(errs, field.Forbidden(at.Child("livenessProbe"), message))
		}
		if c.ReadinessProbe != nil {
			errs = append(errs, field.Forbidden(at.Child("readinessProbe"), message))
		}
		if c.StartupProbe != nil {
			errs = append(errs, field.Forbidden(at.Child("startupProbe"), message))
		}
	}
	return errs
}

// restartable: an init container that goes on running beside the others.
func restartable(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// named: a container of that name is in the list.
func named(list []corev1.Container, name string) bool {
	return name != "" && slices.ContainsFunc(list, func(c corev1.Container) bool { return c.Name == name })
}

// container checks what all containers have in common.
func container(c *corev1.Container, path *field.Path) (errs field.ErrorList) {
	if c.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), ""))
	} else {
		errs = append(errs, dnsLabel(c.Name, path.Child("name"))...)
	}
	if c.Name == "pause" {
		errs = append(errs, unsupported(path.Child("name"), c.Name, "the first process of every pod has that name"))
	}
	if c.Image == "" {
		errs = append(errs, field.Required(path.Child("image"), ""))
	} else if strings.TrimSpace(c.Image) != c.Image {
		errs = append(errs, field.Invalid(path.Child("image"), c.Image, "must not have leading or trailing whitespace"))
	}
	errs = append(errs, oneOf(c.TerminationMessagePolicy, path.Child("terminationMessagePolicy"),
		corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)...)
	errs = append(errs, oneOf(c.ImagePullPolicy, path.Child("imagePullPolicy"),
		corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)...)
	errs = append(errs, containerPorts(c.Ports, path.Child("ports"))...)
	errs = append(errs, env(c.Env, path.Child("env"))...)
	errs = append(errs, envFrom(c.EnvFrom, path.Child("envFrom"))...)
	errs = append(errs, resources(&c.Resources, path.Child("resources"))...)
	return append(errs, containerRefusals(c, path)...)
}

// containerRefusals lists what a process on the host does not get yet.
func containerRefusals(c *corev1.Container, path *field.Path) (errs field.ErrorList) {
	for i := range c.VolumeMounts {
		errs = append(errs, forbidden(path.Child("volumeMounts").Index(i), "process pods have no volumes, they see the host's file system"))
	}
	for i := range c.VolumeDevices {
		errs = append(errs, forbidden(path.Child("volumeDevices").Index(i), "process pods have no volumes, they see the host's file system"))
	}
	if len(c.RestartPolicyRules) > 0 {
		errs = append(errs, forbidden(path.Child("restartPolicyRules"), "use the pod's restartPolicy"))
	}
	if c.SecurityContext != nil {
		errs = append(errs, securityContext(c.SecurityContext, path.Child("securityContext"))...)
	}
	for _, f := range []struct {
		set  bool
		name string
	}{{c.Stdin, "stdin"}, {c.StdinOnce, "stdinOnce"}, {c.TTY, "tty"}} {
		if f.set {
			errs = append(errs, forbidden(path.Child(f.name), "nothing can be attached to a container; use fairlead exec"))
		}
	}
	return errs
}

// securityContext checks what is followed of a container's, and refuses the
// rest: to ignore a restriction would be worse.
func securityContext(c *corev1.SecurityContext, path *field.Path) field.ErrorList {
	errs := user(c.RunAsUser, c.RunAsGroup, path)
	rest := *c
	rest.RunAsUser, rest.RunAsGroup, rest.RunAsNonRoot = nil, nil, nil
	// To say what is so anyway is no wish.
	if rest.Privileged != nil && !*rest.Privileged {
		rest.Privileged = nil
	}
	if rest != (corev1.SecurityContext{}) {
		errs = append(errs, forbidden(path, "of it, only runAsUser, runAsGroup and runAsNonRoot are; leave out the rest"))
	}
	return errs
}

func user(uid, gid *int64, path *field.Path) (errs field.ErrorList) {
	if uid != nil {
		errs = append(errs, invalid(path.Child("runAsUser"), *uid, validation.IsValidUserID(*uid))...)
	}
	if gid != nil {
		errs = append(errs, invalid(path.Child("runAsGroup"), *gid, validation.IsValidGroupID(*gid))...)
	}
	return errs
}

// lifecycle checks the hooks of a container that goes on running.
func lifecycle(l *corev1.Lifecycle, grace int64, path *field.Path) (errs field.ErrorList) {
	if l == nil {
		return nil
	}
	hook := func(h *corev1.LifecycleHandler, path *field.Path) {
		if h != nil {
			errs = append(errs, handler(h.Exec, h.HTTPGet, h.TCPSocket, nil, h.Sleep, grace, path)...)
		}
	}
	hook(l.PostStart, path.Child("postStart"))
	hook(l.PreStop, path.Child("preStop"))
	if l.StopSignal != nil {
		errs = append(errs, forbidden(path.Child("stopSignal"), "containers are stopped with SIGTERM"))
	}
	return errs
}

func containerPorts(ports []corev1.ContainerPort, path *field.Path) (errs field.ErrorList) {
	names := map[string]bool{}
	for i := range ports {
		port, at := &ports[i], path.Index(i)
		if port.Name != "" {
			errs = append(errs, invalid(at.Child("name"), port.Name, validation.IsValidPortName(port.Name))...)
			if names[port.Name] {
				errs = append(errs, field.Duplicate(at.Child("name"), port.Name))
			}
			names[port.Name] = true
		}
		if port.ContainerPort == 0 {
			errs = append(errs, field.Required(at.Child("containerPort"), ""))
		} else {
			errs = append(errs, portNumber(port.ContainerPort, at.Child("containerPort"))...)
		}
		errs = append(errs, protocol(port.Protocol, at.Child("protocol"))...)
		if port.HostPort != 0 {
			errs = append(errs, portNumber(port.HostPort, at.Child("hostPort"))...)
		}
		if port.HostIP != "" {
			errs = append(errs, ipAddress(port.HostIP, at.Child("hostIP"))...)
		}
	}
	return errs
}

// hostPorts checks that no two containers of a list ask for the same port of the node.
func hostPorts(list []corev1.Container, path *field.Path) (errs field.ErrorList) {
	seen := make(map[string]bool)
	for i := range list {
		for j, p := range list[i].Ports {
			if p.HostPort == 0 {
				continue
			}
			key := fmt.Sprintf("%s/%s/%d", p.Protocol, p.HostIP, p.HostPort)
			if seen[key] {
				errs = append(errs, field.Duplicate(path.Index(i).Child("ports").Index(j).Child("hostPort"), key))
			}
			seen[key] = true
		}
	}
	return errs
}

// probes checks the probes of a container that goes on running.
func probes(c *corev1.Container, path *field.Path) (errs field.ErrorList) {
	errs = append(errs, probe(c.LivenessProbe, path.Child("livenessProbe"), true)...)
	errs = append(errs, probe(c.ReadinessProbe, path.Child("readinessProbe"), false)...)
	return append(errs, probe(c.StartupProbe, path.Child("startupProbe"), true)...)
}

// probe checks one. A fatal one restarts the container when it fails.
func probe(p *corev1.Probe, path *field.Path, fatal bool) (errs field.ErrorList) {
	if p == nil {
		return nil
	}
	errs = append(errs, handler(p.Exec, p.HTTPGet, p.TCPSocket, p.GRPC, nil, 0, path)...)
	errs = append(errs, nonNegative(&p.InitialDelaySeconds, path.Child("initialDelaySeconds"))...)
	errs = append(errs, nonNegative(&p.TimeoutSeconds, path.Child("timeoutSeconds"))...)
	errs = append(errs, nonNegative(&p.PeriodSeconds, path.Child("periodSeconds"))...)
	errs = append(errs, nonNegative(&p.SuccessThreshold, path.Child("successThreshold"))...)
	errs = append(errs, nonNegative(&p.FailureThreshold, path.Child("failureThreshold"))...)
	grace := path.Child("terminationGracePeriodSeconds")
	switch {
	case p.TerminationGracePeriodSeconds == nil:
	case !fatal:
		errs = append(errs, field.Invalid(grace, *p.TerminationGracePeriodSeconds, "must not be set for readinessProbes"))
	default:
		errs = append(errs, greaterThanZero(p.TerminationGracePeriodSeconds, grace)...)
	}
	if fatal && p.SuccessThreshold != 1 {
		errs = append(errs, field.Invalid(path.Child("successThreshold"), p.SuccessThreshold, "must be 1"))
	}
	return errs
}

// handler checks the one thing that a probe or a hook does.
func handler(exec *corev1.ExecAction, get *corev1.HTTPGetAction, tcp *corev1.TCPSocketAction, grpc *corev1.GRPCAction,
	sleep *corev1.SleepAction, grace int64, path *field.Path) (errs field.ErrorList) {
	handlers := 0
	another := func(name string) bool {
		if handlers++; handlers > 1 {
			errs = append(errs, field.Forbidden(path.Child(name), "may not specify more than 1 handler type"))
		}
		return handlers == 1
	}
	if exec != nil && another("exec") && len(exec.Command) == 0 {
		errs = append(errs, field.Required(path.Child("exec", "command"), ""))
	}
	if get != nil && another("httpGet") {
		errs = append(errs, httpGet(get, path.Child("httpGet"))...)
	}
	if tcp != nil && another("tcpSocket") {
		errs = append(errs, portNumberOrName(tcp.Port, path.Child("tcpSocket", "port"))...)
	}
	if grpc != nil && another("grpc") {
		errs = append(errs, forbidden(path.Child("grpc"), "use httpGet, tcpSocket or exec"))
	}
	if sleep != nil && another("sleep") && (sleep.Seconds < 0 || sleep.Seconds > grace) {
		errs = append(errs, field.Invalid(path.Child("sleep", "seconds"), sleep.Seconds,
			fmt.Sprintf("must be non-negative and less than terminationGracePeriodSeconds (%d)", grace)))
	}
	if handlers == 0 {
		errs = append(errs, field.Required(path, "must specify a handler type"))
	}
	return errs
}

func httpGet(h *corev1.HTTPGetAction, path *field.Path) (errs field.ErrorList) {
	if h.Path == "" {
		errs = append(errs, field.Required(path.Child("path"), ""))
	}
	errs = append(errs, portNumberOrName(h.Port, path.Child("port"))...)
	errs = append(errs, oneOf(h.Scheme, path.Child("scheme"), corev1.URISchemeHTTP, corev1.URISchemeHTTPS)...)
	for i, header := range h.HTTPHeaders {
		errs = append(errs, invalid(path.Child("httpHeaders").Index(i).Child("name"), header.Name, validation.IsHTTPHeaderName(header.Name))...)
	}
	if h.Protocol != nil && *h.Protocol != corev1.HTTPProtocolHTTP1 {
		errs = append(errs, unsupported(path.Child("protocol"), *h.Protocol, `use "HTTP1"`))
	}
	return errs
}

// fieldRefs are the fields of a pod that an environment variable can show,
// apart from single labels and annotations.
var fieldRefs = []string{
	"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
	"status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
}

func env(vars []corev1.EnvVar, path *field.Path) (errs field.ErrorList) {
	for i := range vars {
		v, at := &vars[i], path.Index(i)
		if v.Name == "" {
			errs = append(errs, field.Required(at.Child("name"), ""))
		} else {
			errs = append(errs, invalid(at.Child("name"), v.Name, validation.IsRelaxedEnvVarName(v.Name))...)
		}
		if v.ValueFrom == nil {
			continue
		}
		from := at.Child("valueFrom")
		if v.Value != "" {
			errs = append(errs, field.Invalid(from, "", "may not be specified when `value` is not empty"))
		}
		errs = append(errs, envSource(v.ValueFrom, from)...)
	}
	return errs
}

func envSource(s *corev1.EnvVarSource, path *field.Path) (errs field.ErrorList) {
	sources := 0
	if s.FieldRef != nil {
		sources++
		errs = append(errs, fieldRef(s.FieldRef, path.Child("fieldRef"))...)
	}
	if s.ConfigMapKeyRef != nil {
		sources++
		at := path.Child("configMapKeyRef")
		errs = append(errs, configMapName(s.ConfigMapKeyRef.Name, at)...)
		if s.ConfigMapKeyRef.Key == "" {
			errs = append(errs, field.Required(at.Child("key"), ""))
		} else {
			errs = append(errs, invalid(at.Child("key"), s.ConfigMapKeyRef.Key, validation.IsConfigMapKey(s.ConfigMapKeyRef.Key))...)
		}
	}
	if s.ResourceFieldRef != nil {
		sources++
		errs = append(errs, forbidden(path.Child("resourceFieldRef"), "process pods have no limits"))
	}
	if s.SecretKeyRef != nil {
		sources++
		if s.SecretKeyRef.Optional == nil || !*s.SecretKeyRef.Optional {
			errs = append(errs, forbidden(path.Child("secretKeyRef"), "there are no Secrets; use configMapKeyRef"))
		}
	}
	if s.FileKeyRef != nil {
		sources++
		errs = append(errs, forbidden(path.Child("fileKeyRef"), "process pods have no volumes; use configMapKeyRef"))
	}
	switch {
	case sources == 0:
		errs = append(errs, field.Invalid(path, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"))
	case sources > 1:
		errs = append(errs, field.Invalid(path, "", "may not have more than one field specified at a time"))
	}
	return errs
}

func fieldRef(ref *corev1.ObjectFieldSelector, path *field.Path) (errs field.ErrorList) {
	if ref.APIVersion == "" {
		errs = append(errs, field.Required(path.Child("apiVersion"), ""))
	} else if ref.APIVersion != "v1" {
		errs = append(errs, field.Invalid(path.Child("apiVersion"), ref.APIVersion, `must be "v1"`))
	}
	at := path.Child("fieldPath")
	if ref.FieldPath == "" {
		return append(errs, field.Required(at, ""))
	}
	whole, key, subscript := strings.Cut(strings.TrimSuffix(ref.FieldPath, "']"), "['")
	switch {
	case subscript && strings.HasSuffix(ref.FieldPath, "']") && whole == "metadata.annotations":
		return append(errs, invalid(at, ref.FieldPath, validation.IsQualifiedName(strings.ToLower(key)))...)
	case subscript && strings.HasSuffix(ref.FieldPath, "']") && whole == "metadata.labels":
		return append(errs, invalid(at, ref.FieldPath, validation.IsQualifiedName(key))...)
	case !slices.Contains(fieldRefs, ref.FieldPath):
		valid := append([]string{"metadata.annotations['<KEY>']", "metadata.labels['<KEY>']"}, fieldRefs...)
		errs = append(errs, field.NotSupported(at, ref.FieldPath, valid))
	}
	return errs
}

func envFrom(sources []corev1.EnvFromSource, path *field.Path) (errs field.ErrorList) {
	for i := range sources {
		s, at := &sources[i], path.Index(i)
		if s.Prefix != "" {
			errs = append(errs, invalid(at.Child("prefix"), s.Prefix, validation.IsRelaxedEnvVarName(s.Prefix))...)
		}
		if s.ConfigMapRef != nil {
			errs = append(errs, configMapName(s.ConfigMapRef.Name, at.Child("configMapRef"))...)
		}
		// One that need not exist is as good as one that does not.
		if s.SecretRef != nil && (s.SecretRef.Optional == nil || !*s.SecretRef.Optional) {
			errs = append(errs, forbidden(at.Child("secretRef"), "there are no Secrets; use configMapRef"))
		}
		switch {
		case s.ConfigMapRef == nil && s.SecretRef == nil:
			errs = append(errs, field.Invalid(at, "", "must specify one of: `configMapRef` or `secretRef`"))
		case s.ConfigMapRef != nil && s.SecretRef != nil:
			errs = append(errs, field.Invalid(at, "", "may not have more than one field specified at a time"))
		}
	}
	return errs
}

func configMapName(name string, path *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path.Child("name"), "")}
	}
	return invalid(path.Child("name"), name, apivalidation.NameIsDNSSubdomain(name, false))
}

// resources checks what is only kept: nothing limits a process pod.
func resources(r *corev1.ResourceRequirements, path *field.Path) (errs field.ErrorList) {
	quantities := func(list corev1.ResourceList, at *field.Path) {
		for _, name := range sorted(list) {
			quantity := list[name]
			errs = append(errs, qualifiedName(string(name), at.Key(string(name)))...)
			if quantity.Sign() < 0 {
				errs = append(errs, field.Invalid(at.Key(string(name)), quantity.String(), "must be greater than or equal to 0"))
			}
		}
	}
	quantities(r.Limits, path.Child("limits"))
	quantities(r.Requests, path.Child("requests"))
	for _, name := range sorted(r.Requests) {
		request := r.Requests[name]
		if limit, ok := r.Limits[name]; ok && request.Cmp(limit) > 0 {
			errs = append(errs, field.Invalid(path.Child("requests"), request.String(),
				fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String())))
		}
	}
	for i := range r.Claims {
		errs = append(errs, forbidden(path.Child("claims").Index(i), "there are no devices to claim"))
	}
	return errs
}

// podTemplateMetadata checks the metadata of a template.
func podTemplateMetadata(t *corev1.PodTemplateSpec, path *field.Path) field.ErrorList {
	errs := metavalidation.ValidateLabels(t.Labels, path.Child("labels"))
	errs = append(errs, apivalidation.ValidateAnnotations(t.Annotations, path.Child("annotations"))...)
	return append(errs, apivalidation.ValidateFinalizers(t.Finalizers, path.Child("finalizers"))...)
}
