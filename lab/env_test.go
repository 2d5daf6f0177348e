// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/cluster"
)

func TestExpand(t *testing.T) {
	known := map[string]string{"A": "1", "B": "$(A)", "EMPTY": ""}
	for _, tc := range []struct{ in, want string }{
		{"", ""},
		{"plain", "plain"},
		{"$(A)", "1"},
		{"x$(A)y$(A)z", "x1y1z"},
		{"$(B)", "$(A)"}, // values are not looked at again
		{"$(EMPTY)", ""},
		{"$(NO)", "$(NO)"},
		{"$$(A)", "$(A)"},
		{"$$$(A)", "$1"},
		{"$$", "$"},
		{"$", "$"},
		{"$A", "$A"},
		{"$(A", "$(A"},
		{"$()", "$()"},
		{"100$", "100$"},
		{"$(A)$", "1$"},
	} {
		got := expand(tc.in, func(n string) (string, bool) { v, ok := known[n]; return v, ok })
		if got != tc.want {
			t.Errorf("expand(%q) is %q, want %q", tc.in, got, tc.want)
		}
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"$(A)", "$$", "$(", "a$b$(A)$$(A)"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		none := func(string) (string, bool) { return "", false }
		// Without anything known only doubled dollar signs change, and a text without dollar signs never does.
		got := expand(s, none)
		if !strings.Contains(s, "$$") && got != s {
			t.Errorf("expand(%q) is %q", s, got)
		}
		if strings.Count(got, "$") > strings.Count(s, "$") {
			t.Errorf("expand(%q) is %q: more dollar signs", s, got)
		}
	})
}

func TestContainerEnv(t *testing.T) {
	yes := true
	pod := testPod("web")
	pod.Labels = map[string]string{"app.kubernetes.io/name": "shop"}
	pod.Annotations = map[string]string{"note": "n"}
	pod.Spec.ServiceAccountName = "sa"
	facts := podFacts{
		pod: pod, params: cluster.DefaultParams(), path: "/bin",
		addrs: []netip.Addr{netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("fd00:244::5")},
		host:  []netip.Addr{netip.MustParseAddr("172.30.0.11")},
		configs: func(name string) (*corev1.ConfigMap, error) {
			if name != "conf" {
				return nil, errors.New(`configmaps "` + name + `" not found`)
			}
			return &corev1.ConfigMap{Data: map[string]string{"k": "v", "other": "o"}}, nil
		},
	}
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
	}
	key := func(name, conf, key string, opt *bool) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: conf}, Key: key, Optional: opt}}}
	}
	from := func(prefix, name string, opt *bool) corev1.EnvFromSource {
		return corev1.EnvFromSource{Prefix: prefix, ConfigMapRef: &corev1.ConfigMapEnvSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: name}, Optional: opt}}
	}
	secret := corev1.EnvVar{Name: "S", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{Key: "k"}}}
	optionalSecret := *secret.DeepCopy()
	optionalSecret.ValueFrom.SecretKeyRef.Optional = &yes
	for _, tc := range []struct {
		name string
		c    corev1.Container
		want []string // among the variables
		not  []string // names that are not set
		err  string
	}{
		{name: "without any", want: []string{"PATH=/bin", "HOSTNAME=web", "KUBERNETES_SERVICE_HOST=10.96.0.1", "KUBERNETES_SERVICE_PORT=443", "KUBERNETES_PORT=tcp://10.96.0.1:443"}},
		{name: "expansion, in order", c: corev1.Container{Env: []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "$(A)2"}, {Name: "C", Value: "$(D)"}, {Name: "D", Value: "4"}, {Name: "H", Value: "$(KUBERNETES_SERVICE_HOST)"}}},
			want: []string{"A=1", "B=12", "C=$(D)", "D=4", "H=10.96.0.1"}},
		{name: "the last one counts", c: corev1.Container{Env: []corev1.EnvVar{{Name: "PATH", Value: "/x:$(PATH)"}, {Name: "A", Value: "1"}, {Name: "A", Value: "2"}}}, want: []string{"PATH=/x:/bin", "A=2"}},
		{name: "fields", c: corev1.Container{Env: []corev1.EnvVar{field("N", "metadata.name"), field("NS", "metadata.namespace"), field("U", "metadata.uid"), field("NODE", "spec.nodeName"),
			field("SA", "spec.serviceAccountName"), field("IP", "status.podIP"), field("IPS", "status.podIPs"), field("HIP", "status.hostIP"), field("HIPS", "status.hostIPs"),
			field("L", "metadata.labels['app.kubernetes.io/name']"), field("AN", "metadata.annotations['note']"), field("NONE", "metadata.labels['x']")}},
			want: []string{"N=web", "NS=default", "U=uid-web", "NODE=n1", "SA=sa", "IP=10.244.1.5", "IPS=10.244.1.5,fd00:244::5", "HIP=172.30.0.11", "HIPS=172.30.0.11", "L=shop", "AN=n", "NONE="}},
		{name: "unknown field", c: corev1.Container{Env: []corev1.EnvVar{field("X", "spec.banana")}}, err: `field "spec.banana" is not one that a variable can be taken from`},
		{name: "ConfigMap", c: corev1.Container{EnvFrom: []corev1.EnvFromSource{from("P_", "conf", nil)}, Env: []corev1.EnvVar{key("K", "conf", "k", nil)}}, want: []string{"P_k=v", "P_other=o", "K=v"}},
		{name: "no such ConfigMap", c: corev1.Container{Env: []corev1.EnvVar{key("K", "no", "k", nil)}}, err: `configmaps "no" not found`},
		{name: "no such key", c: corev1.Container{Env: []corev1.EnvVar{key("K", "conf", "no", nil)}}, err: "couldn't find key no in ConfigMap default/conf"},
		{name: "optional", c: corev1.Container{EnvFrom: []corev1.EnvFromSource{from("", "no", &yes)}, Env: []corev1.EnvVar{key("K", "conf", "no", &yes), key("L", "no", "k", &yes), optionalSecret}}, not: []string{"K", "L", "S"}},
		{name: "no such ConfigMap for all", c: corev1.Container{EnvFrom: []corev1.EnvFromSource{from("", "no", nil)}}, err: `configmaps "no" not found`},
		{name: "secret", c: corev1.Container{Env: []corev1.EnvVar{secret}}, err: "keeps no Secrets"},
		{name: "resource", c: corev1.Container{Name: "c", Env: []corev1.EnvVar{{Name: "R", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{}}}}}, err: "variable R of container c: process pods know fieldRef and configMapKeyRef only"},
	} {
		e, err := containerEnv(&tc.c, facts)
		if tc.err != "" || err != nil {
			if err == nil || tc.err == "" || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: error %v, want %q", tc.name, err, tc.err)
			}
			continue
		}
		list := e.list()
		for _, want := range tc.want {
			if !slices.Contains(list, want) {
				t.Errorf("%s: no %s in %v", tc.name, want, list)
			}
		}
		for _, not := range tc.not {
			if _, have := e.lookup(not); have {
				t.Errorf("%s: %s is set", tc.name, not)
			}
		}
	}
}

func TestContainerSpec(t *testing.T) {
	user, root, no := int64(1000), int64(0), true
	env := &environment{values: map[string]string{}}
	env.set("A", "1")
	for _, tc := range []struct {
		name string
		c    corev1.Container
		argv string
		uid  int64 // -1: as it is
		err  string
	}{
		{name: "command and arguments", c: corev1.Container{Command: []string{"x", "$(A)"}, Args: []string{"$(A)b", "$$(A)"}}, argv: "x 1 1b $(A)", uid: -1},
		{name: "arguments only", c: corev1.Container{Args: []string{"serve"}}, err: "no command"},
		{name: "nothing", err: "no command"},
		{name: "user", c: corev1.Container{Command: []string{"x"}, SecurityContext: &corev1.SecurityContext{RunAsUser: &user, RunAsNonRoot: &no}}, argv: "x", uid: 1000},
		{name: "not root, but root", c: corev1.Container{Command: []string{"x"}, SecurityContext: &corev1.SecurityContext{RunAsUser: &root, RunAsNonRoot: &no}}, err: "runAsNonRoot"},
		{name: "not root, and nobody", c: corev1.Container{Command: []string{"x"}, SecurityContext: &corev1.SecurityContext{RunAsNonRoot: &no}}, err: "runAsNonRoot"},
	} {
		r, err := containerSpec(testPod("web"), &tc.c, env, "/pods/x", 1)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: %v, want %q", tc.name, err, tc.err)
			}
			continue
		}
		uid := int64(-1)
		if r.user != nil {
			uid = int64(r.user.Uid)
		}
		if err != nil || strings.Join(r.argv, " ") != tc.argv || uid != tc.uid {
			t.Errorf("%s: %q uid %d %v", tc.name, r.argv, uid, err)
		}
	}
}

func TestUnsupported(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*corev1.Pod)
		want   string
	}{
		{"nothing special", func(*corev1.Pod) {}, ""},
		{"a volume that nobody mounts", func(p *corev1.Pod) { p.Spec.Volumes = []corev1.Volume{{Name: "v"}} }, ""},
		{"volume", func(p *corev1.Pod) { p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data"}} }, "volume data"},
		{"host port", func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8080}}
		}, ""},
		{"host port on the host's network", func(p *corev1.Pod) {
			p.Spec.HostNetwork = true
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 80}}
		}, ""},
		{"gRPC probe", func(p *corev1.Pod) {
			p.Spec.Containers[0].LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{}}}
		}, "gRPC"},
		{"host processes", func(p *corev1.Pod) { p.Spec.HostPID = true }, "hostPID"},
		{"name", func(p *corev1.Pod) { p.Spec.Containers[0].Name = "pause" }, `"pause"`},
	} {
		pod := testPod("web", corev1.Container{Name: "a", Command: []string{"x"}})
		tc.change(pod)
		err := unsupported(pod)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

func TestPortNumber(t *testing.T) {
	c := &corev1.Container{Name: "c", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}
	for _, tc := range []struct {
		name   string
		number int32
		want   uint16
		ok     bool
	}{{"http", 0, 8080, true}, {"", 80, 80, true}, {"", 0, 0, false}, {"", 70000, 0, false}, {"ftp", 0, 0, false}} {
		got, err := portNumber(c, tc.name, tc.number)
		if got != tc.want || (err == nil) != tc.ok {
			t.Errorf("port %q %d: %d %v", tc.name, tc.number, got, err)
		}
	}
}
