// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// manifests are what the session below applies.
var manifests = map[string]string{
	"shop.yaml": `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: orders, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: orders}}
  template:
    metadata: {labels: {app: orders}}
    spec:
      containers:
      - {name: orders, image: host, command: [/bin/orders], ports: [{name: http, containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec:
  selector: {app: orders}
  clusterIP: 10.96.7.7
  ports: [{name: http, port: 80, targetPort: http}]
`,
	"typo.yaml": `
apiVersion: v1
kind: Service
metadata: {name: typo, namespace: shop}
spec: {selectors: {app: x}, ports: [{port: 80}]}
`,
	"port.yaml": `
apiVersion: v1
kind: Service
metadata: {name: port, namespace: shop}
spec: {ports: [{port: 70000}]}
`,
	"taken.yaml": `
apiVersion: v1
kind: Service
metadata: {name: taken, namespace: shop}
spec: {clusterIP: 10.96.7.7, ports: [{port: 80}]}
`,
}

// session is what a user does, in order: a command and a pattern of its
// output, with ! before it if the command has to fail.
var session = []struct{ command, want string }{
	{"api-resources --no-headers -o name", `(?m)^deployments\.apps$`},
	{"get ns", `(?m)^default +Active +\d+`},
	{"explain service.spec.clusterIP", `(?i)clusterIP is the IP address of the service`},
	{"explain deployments --recursive", `maxUnavailable`},
	{"apply -f shop.yaml", `deployment.apps/orders created`},
	{"apply -f shop.yaml", `service/orders unchanged`},
	{"diff -f shop.yaml", `^$`},
	{"apply --server-side -f shop.yaml --force-conflicts", `service/orders serverside-applied`},
	{"apply -f typo.yaml", `!unknown field "spec.selectors"`},
	{"apply -f port.yaml", `!(?s)The Service "port" is invalid:.* spec.ports\[0\].port: Invalid value: 70000: must be between 1 and 65535, inclusive`},
	{"apply -f taken.yaml", `!provided IP is already allocated`},
	{"-n shop get svc", `(?m)^NAME +TYPE +CLUSTER-IP +EXTERNAL-IP +PORT\(S\) +AGE\norders +ClusterIP +10\.96\.7\.7 +<none> +80/TCP`},
	{"-n shop get svc,deploy,rs -o wide", `(?s)SELECTOR.*app=orders.*UP-TO-DATE`},
	{"-n shop get svc orders -o yaml", `(?s)clusterIPs:\n  - 10\.96\.7\.7\n.*internalTrafficPolicy: Cluster`},
	{"-n shop get svc orders -o jsonpath={.spec.clusterIP}", `^10\.96\.7\.7$`},
	{"-n shop wait --for=jsonpath={.status.replicas}=2 deploy/orders --timeout=30s", `condition met`},
	{"-n shop get pods -l app=orders -o name", `(?m)^pod/orders-[a-z0-9]+-[a-z0-9]+$`},
	{"-n shop get pods", `(?m)^NAME +READY +STATUS +RESTARTS +AGE\norders-\S+ +0/1 +Pending`},
	{"-n shop get all", `(?s)pod/orders.*service/orders.*deployment.apps/orders.*replicaset.apps/orders`},
	{"get pods -A --field-selector spec.nodeName=,metadata.namespace=shop -o name", `pod/orders`},
	{"get pods -A --field-selector spec.colour=red", `!field label not supported: spec.colour`},
	{"-n shop describe svc orders", `(?s)Selector: +app=orders.*TargetPort: +http/TCP`},
	{"-n shop describe deploy orders", `(?s)2 desired.*ScalingReplicaSet`},
	{"-n shop describe pods", `(?s)Status: +Pending.*QoS Class: +BestEffort`},
	{"-n shop scale deploy orders --replicas=3", `deployment.apps/orders scaled`},
	{"-n shop wait --for=jsonpath={.status.replicas}=3 deploy/orders --timeout=30s", `condition met`},
	{"-n shop label svc orders tier=back", `service/orders labeled`},
	{"-n shop annotate svc orders note=x", `service/orders annotated`},
	{"-n shop get svc -l tier=back -o name", `^service/orders\n$`},
	{`-n shop patch svc orders --type=merge -p {"spec":{"sessionAffinity":"None"}}`, `service/orders patched`},
	{`-n shop patch svc orders --type=merge -p {"spec":{"clusterIP":"10.96.7.8"}}`, `!may not change once set`},
	{"-n shop expose deploy orders --name=orders2 --port=81 --target-port=8080", `service/orders2 exposed`},
	{"-n shop create configmap settings --from-literal=a=b", `configmap/settings created`},
	{"-n shop get cm settings -o jsonpath={.data.a}", `^b$`},
	{"-n shop create deployment web --image=host -- /bin/web", `deployment.apps/web created`},
	{"-n shop rollout restart deploy orders", `deployment.apps/orders restarted`},
	{"-n shop rollout status deploy orders --watch=false", `Waiting for deployment`},
	{"-n shop rollout history deploy orders", `REVISION`},
	{"-n shop wait --for=jsonpath={.status.observedGeneration}=4 deploy/orders --timeout=30s", `condition met`},
	{"-n shop rollout undo deploy orders", `deployment.apps/orders rolled back`},
	{"-n shop delete svc orders2", `service "orders2" deleted`},
	{"get ipaddresses", `(?m)^10\.96\.7\.7 +services/shop/orders`},
	{"get servicecidrs", `(?m)^kubernetes +10\.96\.0\.0/16`},
	{"auth can-i delete services", `^yes\n$`},
	{"auth can-i delete services --as system:node:n1 --as-group system:nodes", `!no`},
	{"get events -A", `ScalingReplicaSet`},
	{"delete ns shop --timeout=60s", `namespace "shop" deleted`},
	{"get ns shop", `!namespaces "shop" not found`},
	{"get ipaddresses -o name", `^ipaddress.networking.k8s.io/10\.96\.0\.1\n(ipaddress.networking.k8s.io/10\.96\.0\.10\n)?$`},
	{"delete ns default", `!this namespace may not be deleted`},
	{"version -o json", `(?s)"serverVersion".*"gitVersion": "v1\.\d+\.\d+"`},
}

// TestKubectl holds the session with kubectl as a library, and with the
// machine's own if there is one.
func TestKubectl(t *testing.T) {
	state := t.TempDir()
	for name, text := range manifests {
		must(t, os.WriteFile(filepath.Join(state, name), []byte(text), 0o600))
	}
	r := serverOn(t, state)
	ours := func(ctx context.Context, args ...string) *exec.Cmd {
		return program(ctx, append([]string{"kubectl"}, args...)...)
	}
	t.Run("library", func(t *testing.T) { hold(t, r, ours) })
	path, err := exec.LookPath("kubectl")
	if err != nil {
		t.Log("there is no kubectl on this machine; only the library is tested")
		return
	}
	t.Run("machine", func(t *testing.T) {
		hold(t, r, func(ctx context.Context, args ...string) *exec.Cmd {
			cmd := exec.CommandContext(ctx, path, args...)
			cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(state, "kubeconfig"))
			return cmd
		})
	})
}

// hold goes through the session.
func hold(t *testing.T, r *running, kubectl func(ctx context.Context, args ...string) *exec.Cmd) {
	for n, step := range session {
		t.Run(fmt.Sprintf("%02d %s", n, step.command), func(t *testing.T) {
			cmd := kubectl(t.Context(), strings.Fields(step.command)...)
			cmd.Dir = r.state
			cmd.Env = append(cmd.Env, "FAIRLEAD_STATE="+r.state, "KUBECTL_EXTERNAL_DIFF=diff -u -N")
			out, err := cmd.CombinedOutput()
			pattern, fails := strings.CutPrefix(step.want, "!")
			if (err != nil) != fails || !regexp.MustCompile(pattern).Match(out) {
				t.Errorf("%v, want %s:\n%s", err, step.want, out)
			}
		})
	}
}
