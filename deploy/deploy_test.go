// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/apis/apps"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/apis/rbac"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install"
	rbacvalidation "k8s.io/kubernetes/pkg/apis/rbac/validation"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/apiserver"
	"github.com/fairlead/fairlead/config"
	"github.com/fairlead/fairlead/dns/corefile"
	"github.com/fairlead/fairlead/pki"
)

// api is an address that every rendering needs.
const api = "192.0.2.1:6443"

// renderings are values that exercise every template.
func renderings() map[string]map[string]any {
	return map[string]map[string]any{
		"defaults":     {},
		"only proxy":   {"dns": map[string]any{"enabled": false}, "network": map[string]any{"enabled": false}},
		"only dns":     {"apiServer": "", "proxy": map[string]any{"enabled": false}, "network": map[string]any{"enabled": false}},
		"only network": {"apiServer": "", "proxy": map[string]any{"enabled": false}, "dns": map[string]any{"enabled": false}},
		"dual stack": {
			"apiServer": "[2001:db8::1]:6443", "serviceCIDRs": []any{"10.96.0.0/16", "fd00:96::/112"}, "podCIDRs": []any{"10.244.0.0/16", "fd00:244::/48"},
			"dns": map[string]any{"ips": []any{"10.96.0.10", "fd00:96::a"}},
		},
		"IPv6": {
			"serviceCIDRs": []any{"fd00:96::/112"}, "podCIDRs": []any{"fd00:244::/48"}, "dns": map[string]any{"ips": []any{"fd00:96::a"}},
			"proxy": map[string]any{"healthzBindAddress": "[::]:10256"},
		},
		"CoreDNS's Corefile": {"dns": map[string]any{"corefileConfigMap": "coredns", "service": false}},
		"a tag":              {"image": map[string]any{"tag": "next"}},
		"names like numbers": {
			"dns": map[string]any{"corefileConfigMap": "123"}, "image": map[string]any{"tag": "1", "pullSecrets": []any{"123"}}, "seccompProfile": "123", "seLinuxType": "1",
		},
		"everything": {
			"apiServer": "api.example:6443,[2001:db8::1]:6443", "clusterDomain": "example.org",
			"proxy": map[string]any{"nodePortAddresses": []any{"192.0.2.0/24", "2001:db8::/64"}, "passOnTerminating": false, "retryRefused": false, "metricsBindAddress": "0.0.0.0:10249"},
			"dns": map[string]any{
				"upstreams": []any{"192.0.2.53", "192.0.2.54"}, "pods": "verified", "clients": []any{"198.51.100.0/24"}, "nodeSearch": []any{"corp.example"},
				"searchCompletion": "on", "suppressAAAA": "on", "clientRate": "100:200", "log": "sample:100",
			},
			"network":  map[string]any{"tunnel": "never", "tunnelPort": 8472, "podFastPath": "sys-admin", "podSocketLB": true, "nonMasqueradeCIDRs": []any{"198.51.100.0/24"}, "cniBinDir": "/usr/libexec/cni", "cniConfDir": "/var/lib/cni/conf"},
			"image":    map[string]any{"repository": "registry.example/fairlead", "digest": "sha256:" + strings.Repeat("0", 64), "pullPolicy": "Always", "pullSecrets": []any{"key"}},
			"stateDir": "/var/lib/other", "startupTaint": "", "logLevel": "debug", "extraArgs": []any{"--conntrack-min=262144"},
			"resources":    map[string]any{"limits": map[string]any{"memory": "256Mi"}},
			"nodeSelector": map[string]any{"kubernetes.io/os": "linux", "pool": "a"}, "tolerations": []any{map[string]any{"key": "a", "operator": "Exists"}},
			"affinity":       map[string]any{"nodeAffinity": map[string]any{}},
			"seccompProfile": "fairlead.json", "seLinuxType": "spc_t",
			"podLabels": map[string]any{"team": "network"}, "podAnnotations": map[string]any{"note": "text"},
		},
	}
}

// rendered are the objects of a rendering, decoded as strictly as an API server can.
func rendered(t *testing.T, values map[string]any) map[string]runtime.Object {
	t.Helper()
	with := maps.Clone(values)
	if _, ok := with["apiServer"]; !ok {
		with["apiServer"] = api
	}
	text, err := Render("kube-system", with)
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, text)
}

func decode(t *testing.T, text string) map[string]runtime.Object {
	t.Helper()
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	out := map[string]runtime.Object{}
	for _, doc := range documents(text) {
		o, kind, err := strict.Decode([]byte(doc), nil, nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		out[kind.Kind] = o
	}
	return out
}

func documents(text string) []string {
	_, text, _ = strings.Cut("\n"+text, "\n---\n")
	return strings.Split(text, "\n---\n")
}

// TestManifestIsUpToDate: fairlead.yaml is what the chart makes now.
func TestManifestIsUpToDate(t *testing.T) {
	want, err := Plain(nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("fairlead.yaml")
	if err != nil || string(got) != want {
		t.Errorf("fairlead.yaml is not what the chart makes (%v): run make manifest and commit", err)
	}
	if n := len(documents(string(got))); n != 6 {
		t.Errorf("%d objects", n)
	}
	for _, doc := range documents(string(got)) {
		if strings.Contains(doc, "helm") || strings.Contains(doc, "Helm") {
			t.Errorf("the plain manifest speaks of helm:\n%s", doc)
		}
	}
	if n := strings.Count(string(got), "--api-server="+Placeholder); n != 1 {
		t.Errorf("the place for the API server's address is there %d times", n)
	}
}

// TestPlainWithValues: what is made for a cluster has its values, and no word of those of the repository.
func TestPlainWithValues(t *testing.T) {
	text, err := Plain(map[string]any{"apiServer": "192.0.2.1:6443", "serviceCIDRs": []any{"10.96.0.0/16", "fd00:96::/112"},
		"dns": map[string]any{"ips": []any{"10.96.0.10", "fd00:96::a"}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"- --api-server=192.0.2.1:6443\n", "- --service-cidr=10.96.0.0/16,fd00:96::/112\n", "- --dns-ip=10.96.0.10,fd00:96::a\n", "- --pod-cidr=10.244.0.0/16\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("it has not %q", want)
		}
	}
	if strings.Contains(text, Placeholder) || strings.Contains(text, "default values") {
		t.Errorf("it speaks of the default values:\n%.500s", text)
	}
	if _, err := Plain(map[string]any{"apiserver": "192.0.2.1:6443"}); err == nil {
		t.Error("a value that there is not is not refused")
	}
}

// TestObjects: whatever the values, every object passes kube-apiserver's own validation, and the agent takes the flags.
func TestObjects(t *testing.T) {
	for name, values := range renderings() {
		t.Run(name, func(t *testing.T) {
			objects := rendered(t, values)
			for kind, o := range objects {
				for _, err := range validate(t, o) {
					t.Errorf("%s: %v", kind, err)
				}
			}
			d := objects["DaemonSet"].(*appsv1.DaemonSet)
			cfg := parse(t, d)
			if cfg.Node != "$(NODE_NAME)" {
				t.Errorf("node %q", cfg.Node)
			}
			for _, kind := range []string{"ServiceAccount", "ClusterRole", "ClusterRoleBinding"} {
				if objects[kind] == nil {
					t.Errorf("no %s", kind)
				}
			}
			checkRoles(t, values, objects, cfg)
		})
	}
}

// checkRoles: what is switched off leaves nothing behind.
func checkRoles(t *testing.T, values map[string]any, objects map[string]runtime.Object, cfg *config.Agent) {
	on := func(role string) bool {
		v, _ := values[role].(map[string]any)
		enabled, ok := v["enabled"].(bool)
		return enabled || !ok
	}
	pod := objects["DaemonSet"].(*appsv1.DaemonSet).Spec.Template.Spec
	args := pod.Containers[0].Args
	if got := len(cfg.DNS) > 0; got != on("dns") {
		t.Errorf("DNS is on: %t", got)
	}
	if got := cfg.CNIConfDir != "" && cfg.CNIBinDir != ""; got != on("network") {
		t.Errorf("the pod network is on: %t", got)
	}
	if got := !slices.Contains(args, "--proxy=false"); got != on("proxy") {
		t.Errorf("the proxy is on: %t", got)
	}
	if objects["Service"] != nil && !on("dns") {
		t.Error("there is a Service kube-dns without DNS")
	}
	for _, v := range pod.Volumes {
		if strings.HasPrefix(v.Name, "cni-") && !on("network") || v.Name == "dns" && !on("dns") {
			t.Errorf("volume %s is not used", v.Name)
		}
	}
	if port := cfg.Healthz.Port(); pod.Containers[0].LivenessProbe.HTTPGet.Port.IntVal != int32(port) || (port == 10256) != on("proxy") {
		t.Errorf("the probes ask port %s, the agent answers on %s", pod.Containers[0].LivenessProbe.HTTPGet.Port.String(), cfg.Healthz)
	}
}

// TestFlags: each value that is a flag of the agent's is that flag.
func TestFlags(t *testing.T) {
	for rendering, want := range map[string]map[string]string{
		"everything": {
			"node": "$(NODE_NAME)", "state": "/var/lib/other", "api-server": "[api.example:6443,[2001:db8::1]:6443]", "cluster-domain": "[example.org]",
			"proxy": "true", "nodeport-addresses": "[192.0.2.0/24,2001:db8::/64]", "pass-on-terminating": "false", "retry-refused": "false", "startup-taint": "",
			"healthz-bind-address": "0.0.0.0:10256", "metrics-bind-address": "0.0.0.0:10249",
			"dns-corefile": "/etc/fairlead/dns", "dns-clients": "[198.51.100.0/24]", "dns-node-search": "[corp.example]", "dns-search-completion": "on",
			"dns-suppress-aaaa": "on", "dns-client-rate": "100:200", "dns-log": "sample:100", "conntrack-min": "262144",
			"tunnel": "never", "tunnel-port": "8472", "pod-fast-path": "true", "pod-socket-lb": "true", "non-masquerade-cidr": "[198.51.100.0/24]", "verbose": "true",
			"cni-bin-dir": "/host/cni/bin", "cni-conf-dir": "/host/cni/conf",
		},
		"dual stack": {
			"service-cidr": "[10.96.0.0/16,fd00:96::/112]", "pod-cidr": "[10.244.0.0/16,fd00:244::/48]", "dns-ip": "[10.96.0.10,fd00:96::a]", "verbose": "false",
			"startup-taint": "fairlead.io/agent-not-ready", "pod-fast-path": "false", "pod-socket-lb": "false",
		},
		"IPv6":     {"healthz-bind-address": "[::]:10256"},
		"only dns": {"proxy": "false", "healthz-bind-address": "127.0.0.1:10266", "cni-conf-dir": ""},
	} {
		flags := parse(t, rendered(t, renderings()[rendering])["DaemonSet"].(*appsv1.DaemonSet)).Flags
		for name, value := range want {
			if flags[name] != value {
				t.Errorf("%s: --%s=%s, want %s", rendering, name, flags[name], value)
			}
		}
	}
}

// parse reads the container's flags as the agent does.
func parse(t *testing.T, d *appsv1.DaemonSet) *config.Agent {
	t.Helper()
	fs := pflag.NewFlagSet("agent", pflag.ContinueOnError)
	flags := config.AddFlags(fs)
	fs.Bool("verbose", false, "")
	args := d.Spec.Template.Spec.Containers[0].Args
	if args[0] != "agent" {
		t.Fatalf("the command is %q", args[0])
	}
	if err := fs.Parse(args[1:]); err != nil {
		t.Fatal(err)
	}
	cfg, err := flags.Agent()
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// validate is what kube-apiserver finds wrong with an object, after its defaults.
func validate(t *testing.T, o runtime.Object) field.ErrorList {
	t.Helper()
	legacyscheme.Scheme.Default(o)
	convert := func(into runtime.Object) {
		t.Helper()
		if err := legacyscheme.Scheme.Convert(o, into, nil); err != nil {
			t.Fatal(err)
		}
	}
	switch o.(type) {
	case *appsv1.DaemonSet:
		in := new(apps.DaemonSet)
		convert(in)
		return appsvalidation.ValidateDaemonSet(in, corevalidation.PodValidationOptions{})
	case *corev1.Service:
		in := new(core.Service)
		convert(in)
		return corevalidation.ValidateServiceCreate(in)
	case *corev1.ConfigMap:
		in := new(core.ConfigMap)
		convert(in)
		return corevalidation.ValidateConfigMap(in)
	case *corev1.ServiceAccount:
		in := new(core.ServiceAccount)
		convert(in)
		return corevalidation.ValidateServiceAccount(in)
	case *rbacv1.ClusterRole:
		in := new(rbac.ClusterRole)
		convert(in)
		return rbacvalidation.ValidateClusterRole(in, rbacvalidation.ClusterRoleValidationOptions{})
	case *rbacv1.ClusterRoleBinding:
		in := new(rbac.ClusterRoleBinding)
		convert(in)
		return rbacvalidation.ValidateClusterRoleBinding(in)
	}
	t.Fatalf("no validation for %T", o)
	return nil
}

// TestServerTakes applies, without keeping it, every object whose kind the embedded API serves.
func TestServerTakes(t *testing.T) {
	dir := t.TempDir()
	authority, err := pki.Ensure(filepath.Join(dir, "pki"), pki.Options{})
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	server, err := apiserver.New(ctx, apiserver.Config{
		StateDir: dir, Listeners: []net.Listener{l}, PKI: authority, Logger: slog.New(slog.DiscardHandler),
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")},
	})
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() { cancel(); must(t, <-done) })
	select {
	case <-server.Ready():
	case <-time.After(time.Minute):
		t.Fatal("the API server does not get ready")
	}
	pair, err := authority.Client("admin", user.SystemPrivilegedGroup)
	must(t, err)
	cfg := &rest.Config{Host: "https://" + l.Addr().String(), TLSClientConfig: rest.TLSClientConfig{CAData: authority.CA, CertData: pair.Cert, KeyData: pair.Key}}
	typed, err := kubernetes.NewForConfig(cfg)
	must(t, err)
	client, err := dynamic.NewForConfig(cfg)
	must(t, err)
	_, err = typed.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system"}}, metav1.CreateOptions{})
	if err != nil && !strings.Contains(err.Error(), "already exists") {
		t.Fatal(err)
	}
	served := map[string]schema.GroupVersionResource{
		"Service": corev1.SchemeGroupVersion.WithResource("services"), "ConfigMap": corev1.SchemeGroupVersion.WithResource("configmaps"),
	}
	for name, values := range renderings() {
		if _, ok := values["apiServer"]; !ok {
			values["apiServer"] = api
		}
		text, err := Render("kube-system", values)
		must(t, err)
		for _, doc := range documents(text) {
			var u unstructured.Unstructured
			must(t, yaml.Unmarshal([]byte(doc), &u.Object))
			resource, ok := served[u.GetKind()]
			if !ok {
				continue
			}
			body, err := json.Marshal(u.Object)
			must(t, err)
			got, err := client.Resource(resource).Namespace(u.GetNamespace()).Patch(ctx, u.GetName(), types.ApplyPatchType, body,
				metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}, FieldManager: "test", FieldValidation: metav1.FieldValidationStrict})
			if err != nil {
				t.Errorf("%s: apply %s: %v", name, u.GetKind(), err)
				continue
			}
			if u.GetKind() == "Service" {
				want, _, _ := unstructured.NestedStringSlice(u.Object, "spec", "clusterIPs")
				have, _, _ := unstructured.NestedStringSlice(got.Object, "spec", "clusterIPs")
				if !slices.Equal(want, have) {
					t.Errorf("%s: kube-dns has %v, want %v", name, have, want)
				}
			}
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestCorefile: the Corefile that the chart makes is one that the agent takes, and says what the values say.
func TestCorefile(t *testing.T) {
	for name, values := range renderings() {
		cm, ok := rendered(t, values)["ConfigMap"].(*corev1.ConfigMap)
		if !ok {
			continue
		}
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("nameserver 192.0.2.99\n"), 0o644))
		path := filepath.Join(dir, "Corefile")
		text := strings.ReplaceAll(cm.Data["Corefile"], "/etc/resolv.conf", filepath.Join(dir, "resolv.conf"))
		must(t, os.WriteFile(path, []byte(text), 0o644))
		read, err := corefile.Load(dir, corefile.OS())
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, cm.Data["Corefile"])
			continue
		}
		want := []string{"192.0.2.99:53"}
		if dns, _ := values["dns"].(map[string]any); dns["upstreams"] != nil {
			want = []string{"192.0.2.53:53", "192.0.2.54:53"}
		}
		var got []string
		for _, u := range read.Blocks[0].Forward[0].Upstreams {
			got = append(got, u.Addr.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: names outside go to %v, want %v", name, got, want)
		}
	}
}

// TestRefused: wrong values are refused with a sentence that names them.
func TestRefused(t *testing.T) {
	dns := func(key string, value any) map[string]any { return map[string]any{"dns": map[string]any{key: value}} }
	for _, c := range []struct {
		name   string
		values map[string]any
		want   []string
	}{
		{"no API server", map[string]any{"apiServer": ""}, []string{"apiServer is empty", "kubectl cluster-info"}},
		{"a URL", map[string]any{"apiServer": "https://192.0.2.1:6443"}, []string{`apiServer has "https://192.0.2.1:6443": want HOST:PORT`}},
		{"no port", map[string]any{"apiServer": "192.0.2.1"}, []string{"want HOST:PORT"}},
		{"nothing to do", map[string]any{"proxy": off(), "dns": off(), "network": off()}, []string{"proxy.enabled, dns.enabled and network.enabled are all false"}},
		{"an unknown value", map[string]any{"prxy": map[string]any{}}, []string{"additional properties 'prxy' not allowed"}},
		{"an unknown value below", dns("upstream", []any{"192.0.2.1"}), []string{"/dns", "additional properties 'upstream' not allowed"}},
		{"a wrong type", map[string]any{"proxy": map[string]any{"enabled": "yes"}}, []string{"/proxy/enabled", "want boolean"}},
		{"a wrong mode", map[string]any{"network": map[string]any{"tunnel": "sometimes"}}, []string{"/network/tunnel", "'auto', 'always', 'never'"}},
		{"a wrong level", map[string]any{"logLevel": "trace"}, []string{"/logLevel", "'info', 'debug'"}},
		{"a range without a length", map[string]any{"podCIDRs": []any{"10.244.0.0"}}, []string{`podCIDRs has "10.244.0.0": want ranges`}},
		{"two ranges of a family", map[string]any{"podCIDRs": []any{"10.244.0.0/16", "10.245.0.0/16"}}, []string{"podCIDRs has two of one family"}},
		{"three addresses", dns("ips", []any{"10.96.0.10", "fd00::a", "10.96.0.11"}), []string{"/dns/ips", "maxItems"}},
		{"no address", dns("ips", []any{}), []string{"/dns/ips", "minItems"}},
		{"a name for an address", dns("ips", []any{"kube-dns"}), []string{`dns.ips has "kube-dns": want addresses`}},
		{"two addresses of a family", dns("ips", []any{"10.96.0.10", "10.96.0.11"}), []string{"dns.ips has two of one family"}},
		{"two sources of upstreams", map[string]any{"dns": map[string]any{"upstreams": []any{"192.0.2.1"}, "corefileConfigMap": "coredns"}}, []string{"dns.upstreams and dns.corefileConfigMap are both given"}},
		{"a relative directory", map[string]any{"stateDir": "var/lib"}, []string{`stateDir is "var/lib": want an absolute path`}},
		{"a digest cut short", map[string]any{"image": map[string]any{"digest": "sha256:12"}}, []string{`image.digest is "sha256:12": want sha256: and 64`}},
		{"an argument that is no flag", map[string]any{"extraArgs": []any{"verbose"}}, []string{`extraArgs has "verbose": want flags`}},
		{"no port for health", map[string]any{"proxy": map[string]any{"healthzBindAddress": "0.0.0.0"}}, []string{"proxy.healthzBindAddress", "want 0.0.0.0:PORT"}},
		{"no address for health", map[string]any{"proxy": map[string]any{"healthzBindAddress": ":10256"}}, []string{"proxy.healthzBindAddress", "want 0.0.0.0:PORT"}},
		{"health where the probes do not ask", map[string]any{"proxy": map[string]any{"healthzBindAddress": "192.0.2.7:10256"}}, []string{"proxy.healthzBindAddress", "the pod's probes ask 127.0.0.1"}},
		{"no address for metrics", map[string]any{"proxy": map[string]any{"metricsBindAddress": "10249"}}, []string{"/proxy/metricsBindAddress", "does not match pattern"}},
		{"a port that there is not", map[string]any{"apiServer": "192.0.2.1:99999"}, []string{`apiServer has "192.0.2.1:99999": want HOST:PORT`}},
		{"a length that there is not", map[string]any{"podCIDRs": []any{"10.244.0.0/99"}}, []string{`podCIDRs has "10.244.0.0/99": want ranges`}},
		{"an address that there is not", map[string]any{"serviceCIDRs": []any{"10.960.0.0/16"}}, []string{`serviceCIDRs has "10.960.0.0/16": want ranges`}},
		{"a domain with a space", map[string]any{"clusterDomain": "cluster local"}, []string{"/clusterDomain", "does not match pattern"}},
		{"a rate that is no number", dns("clientRate", "fast"), []string{"/dns/clientRate", "does not match pattern"}},
		{"a log of something else", dns("log", "everything"), []string{"/dns/log", "does not match pattern"}},
		{"an upstream that ends the line", dns("upstreams", []any{"192.0.2.53 {"}), []string{"/dns/upstreams/0", "does not match pattern"}},
		{"a search domain with a space", dns("nodeSearch", []any{"corp example"}), []string{"/dns/nodeSearch/0", "does not match pattern"}},
		{"a taint's key with a space", map[string]any{"startupTaint": "not ready"}, []string{"/startupTaint", "does not match pattern"}},
		{"a label that selects", map[string]any{"podLabels": map[string]any{"app.kubernetes.io/name": "other"}}, []string{"podLabels has app.kubernetes.io/name", "is the chart's own"}},
		{"an annotation of the chart's", map[string]any{"podAnnotations": map[string]any{"kubectl.kubernetes.io/default-container": "x"}}, []string{"podAnnotations has kubectl.kubernetes.io/default-container", "is the chart's own"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, ok := c.values["apiServer"]; !ok {
				c.values["apiServer"] = api
			}
			text, err := Render("kube-system", c.values)
			if err == nil {
				t.Fatalf("taken:\n%s", text)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\nwant %q", err, want)
				}
			}
		})
	}
	if _, err := Render("default", map[string]any{"apiServer": api}); err == nil || !strings.Contains(err.Error(), "install into kube-system") {
		t.Errorf("another namespace: %v", err)
	}
}

func off() map[string]any { return map[string]any{"enabled": false} }

// TestValues: each value is in the schema and the other way round, docs/install.md has a line for it, and a template reads it.
func TestValues(t *testing.T) {
	var values map[string]any
	text, err := chartFiles.ReadFile("chart/values.yaml")
	must(t, err)
	must(t, yaml.UnmarshalStrict(text, &values))
	var schema map[string]any
	text, err = chartFiles.ReadFile("chart/values.schema.json")
	must(t, err)
	must(t, json.Unmarshal(text, &schema))
	docs, err := os.ReadFile("../docs/install.md")
	must(t, err)
	all := leaves("", values, schema, t)
	if len(all) < 30 {
		t.Fatalf("only %d values", len(all))
	}
	for _, name := range all {
		if !strings.Contains(string(docs), "| `"+name+"` |") {
			t.Errorf("docs/install.md has no line for the value %s", name)
		}
		alone, ok := only(name)
		if !ok {
			t.Errorf("no rendering sets %s", name)
			continue
		}
		plain := map[string]any{"apiServer": api}
		before, err := Render("kube-system", plain)
		must(t, err)
		maps.Copy(plain, alone)
		if after, err := Render("kube-system", plain); err != nil || after == before {
			t.Errorf("%v changes nothing (%v)", alone, err)
		}
	}
}

// only is one value out of the renderings that set it.
func only(name string) (map[string]any, bool) {
	section, key, below := strings.Cut(name, ".")
	for _, values := range renderings() {
		if !below {
			if v, ok := values[name]; ok && (name != "apiServer" || v != "") {
				return map[string]any{name: v}, true
			}
			continue
		}
		all, _ := values[section].(map[string]any)
		if v, ok := all[key]; ok {
			return map[string]any{section: map[string]any{key: v}}, true
		}
	}
	return nil, false
}

// leaves are the names of all values; a section whose keys are not the user's is taken apart.
func leaves(prefix string, values, schema map[string]any, t *testing.T) (names []string) {
	properties, _ := schema["properties"].(map[string]any)
	for key := range properties {
		if _, ok := values[key]; !ok && key != "global" {
			t.Errorf("the schema has %s%s, which is no value", prefix, key)
		}
	}
	for key, v := range values {
		s, ok := properties[key].(map[string]any)
		if !ok {
			t.Errorf("the schema does not have %s%s", prefix, key)
			continue
		}
		if below, ok := v.(map[string]any); ok && s["properties"] != nil {
			names = append(names, leaves(prefix+key+".", below, s, t)...)
			continue
		}
		names = append(names, prefix+key)
	}
	return names
}
