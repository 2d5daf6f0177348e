// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/cluster"
)

// defaultPath is the PATH of a container that sets none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// expand replaces $(NAME) in s by what lookup knows, as Kubernetes does in commands and values: "$$" is a dollar sign, and a reference
// to an unknown name stays as it is.
func expand(s string, lookup func(string) (string, bool)) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i:], ')')
			if end < 0 {
				b.WriteByte('$')
				continue
			}
			name := s[i+2 : i+end]
			if v, ok := lookup(name); ok {
				b.WriteString(v)
			} else {
				b.WriteString(s[i : i+end+1])
			}
			i += end
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}

// environment is the ordered result of a container's env and envFrom.
type environment struct {
	names  []string
	values map[string]string
}

func (e *environment) set(name, value string) {
	if _, have := e.values[name]; !have {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

func (e *environment) lookup(name string) (string, bool) {
	v, ok := e.values[name]
	return v, ok
}

// list is the form that a process is started with.
func (e *environment) list() []string {
	out := make([]string, len(e.names))
	for i, n := range e.names {
		out[i] = n + "=" + e.values[n]
	}
	return out
}

// podFacts is what a pod's environment may name about the pod itself.
type podFacts struct {
	pod     *corev1.Pod
	addrs   []netip.Addr
	host    []netip.Addr
	params  cluster.Params
	path    string // the default PATH
	configs func(name string) (*corev1.ConfigMap, error)
}

// containerEnv makes a container's environment. An error is one that may mend itself, such as a ConfigMap that does not exist yet.
func containerEnv(c *corev1.Container, f podFacts) (*environment, error) {
	e := &environment{values: map[string]string{}}
	hostname, _ := podHostname(f.pod, f.params.Domain)
	e.set("PATH", f.path)
	e.set("HOSTNAME", hostname)
	e.set("HOME", "/root")
	for _, kv := range kubernetesEnv(f.params) {
		e.set(kv[0], kv[1])
	}
	for _, from := range c.EnvFrom {
		if err := f.envFrom(e, from); err != nil {
			return nil, err
		}
	}
	for _, v := range c.Env {
		value := expand(v.Value, e.lookup)
		if v.ValueFrom != nil {
			got, ok, err := f.valueFrom(c, v)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
			value = got
		}
		e.set(v.Name, value)
	}
	return e, nil
}

// kubernetesEnv are the variables that in-cluster clients find the API server by.
func kubernetesEnv(p cluster.Params) [][2]string {
	host := p.KubernetesAddr().String()
	url := "tcp://" + netip.AddrPortFrom(p.KubernetesAddr(), 443).String()
	return [][2]string{
		{"KUBERNETES_SERVICE_HOST", host},
		{"KUBERNETES_SERVICE_PORT", "443"},
		{"KUBERNETES_SERVICE_PORT_HTTPS", "443"},
		{"KUBERNETES_PORT", url},
		{"KUBERNETES_PORT_443_TCP", url},
		{"KUBERNETES_PORT_443_TCP_PROTO", "tcp"},
		{"KUBERNETES_PORT_443_TCP_PORT", "443"},
		{"KUBERNETES_PORT_443_TCP_ADDR", host},
	}
}

func (f podFacts) envFrom(e *environment, from corev1.EnvFromSource) error {
	switch {
	case from.ConfigMapRef != nil:
		m, err := f.configs(from.ConfigMapRef.Name)
		if err != nil {
			if optional(from.ConfigMapRef.Optional) {
				return nil
			}
			return err
		}
		for _, k := range slices.Sorted(maps.Keys(m.Data)) {
			e.set(from.Prefix+k, m.Data[k])
		}
		return nil
	case from.SecretRef != nil && optional(from.SecretRef.Optional):
		return nil
	case from.SecretRef != nil:
		return fmt.Errorf("secret %q not found: this cluster keeps no Secrets; use a ConfigMap", from.SecretRef.Name)
	}
	return nil
}

// valueFrom resolves one variable; ok is false for an optional one whose source is missing.
func (f podFacts) valueFrom(c *corev1.Container, v corev1.EnvVar) (value string, ok bool, err error) {
	switch from := v.ValueFrom; {
	case from.FieldRef != nil:
		value, err = f.field(from.FieldRef.FieldPath)
		return value, err == nil, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		m, err := f.configs(ref.Name)
		if err == nil {
			if value, ok := m.Data[ref.Key]; ok {
				return value, true, nil
			}
			err = fmt.Errorf("couldn't find key %s in ConfigMap %s/%s", ref.Key, f.pod.Namespace, ref.Name)
		}
		if optional(ref.Optional) {
			return "", false, nil
		}
		return "", false, err
	case from.SecretKeyRef != nil && optional(from.SecretKeyRef.Optional):
		return "", false, nil
	case from.SecretKeyRef != nil:
		return "", false, fmt.Errorf("secret %q not found: this cluster keeps no Secrets; use a ConfigMap", from.SecretKeyRef.Name)
	}
	return "", false, fmt.Errorf("variable %s of container %s: process pods know fieldRef and configMapKeyRef only", v.Name, c.Name)
}

// field resolves a downward API path.
func (f podFacts) field(path string) (string, error) {
	switch path {
	case "metadata.name":
		return f.pod.Name, nil
	case "metadata.namespace":
		return f.pod.Namespace, nil
	case "metadata.uid":
		return string(f.pod.UID), nil
	case "spec.nodeName":
		return f.pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return f.pod.Spec.ServiceAccountName, nil
	case "status.podIP":
		return joinAddrs(f.addrs[:min(1, len(f.addrs))]), nil
	case "status.podIPs":
		return joinAddrs(f.addrs), nil
	case "status.hostIP":
		return joinAddrs(f.host[:min(1, len(f.host))]), nil
	case "status.hostIPs":
		return joinAddrs(f.host), nil
	}
	if key, ok := subscript(path, "metadata.labels"); ok {
		return f.pod.Labels[key], nil
	}
	if key, ok := subscript(path, "metadata.annotations"); ok {
		return f.pod.Annotations[key], nil
	}
	return "", fmt.Errorf("field %q is not one that a variable can be taken from", path)
}

// subscript splits field['key'].
func subscript(path, field string) (string, bool) {
	rest, ok := strings.CutPrefix(path, field+"['")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(rest, "']")
}

func optional(b *bool) bool { return b != nil && *b }

func joinAddrs(addrs []netip.Addr) string {
	s := make([]string, len(addrs))
	for i, a := range addrs {
		s[i] = a.String()
	}
	return strings.Join(s, ",")
}

// portNumber resolves the port of a probe or hook: a number, or the name of one of the container's ports.
func portNumber(c *corev1.Container, name string, number int32) (uint16, error) {
	if name == "" {
		if number < 1 || number > 65535 {
			return 0, fmt.Errorf("port %s is not from 1 to 65535", strconv.Itoa(int(number)))
		}
		return uint16(number), nil
	}
	for _, p := range c.Ports {
		if p.Name == name {
			return uint16(p.ContainerPort), nil
		}
	}
	return 0, fmt.Errorf("container %s has no port named %q", c.Name, name)
}
