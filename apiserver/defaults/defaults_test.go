// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package defaults

import (
	"encoding/json"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/randfill"
)

// newScheme is a scheme with the client's types and our defaults.
func newScheme(t testing.TB) *runtime.Scheme {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := clientscheme.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	if err := Register(scheme); err != nil {
		t.Fatal(err)
	}
	return scheme
}

// The defaults of a container and of a pod's spec, which many rows share.
const (
	ctrDefaults = `"resources":{},"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File"`
	podDefaults = `"restartPolicy":"Always","terminationGracePeriodSeconds":30,"dnsPolicy":"ClusterFirst","securityContext":{},"schedulerName":"default-scheduler"`
)

func TestDefaults(t *testing.T) {
	svc := func() runtime.Object { return &corev1.Service{} }
	pod := func() runtime.Object { return &corev1.Pod{} }
	dep := func() runtime.Object { return &appsv1.Deployment{} }
	rs := func() runtime.Object { return &appsv1.ReplicaSet{} }
	ns := func() runtime.Object { return &corev1.Namespace{} }
	node := func() runtime.Object { return &corev1.Node{} }
	eps := func() runtime.Object { return &discoveryv1.EndpointSlice{} }
	cm := func() runtime.Object { return &corev1.ConfigMap{} }
	svcList := func() runtime.Object { return &corev1.ServiceList{} }
	rows := []struct {
		name     string
		kind     func() runtime.Object
		in, want string // the fields that matter; want is compared where it has a value
	}{
		{"service empty", svc, `{}`, `{"spec":{"type":"ClusterIP","sessionAffinity":"None","internalTrafficPolicy":"Cluster"},"status":{"loadBalancer":{}}}`},
		{"service port", svc, `{"spec":{"ports":[{"port":80}]}}`, `{"spec":{"ports":[{"port":80,"protocol":"TCP","targetPort":80}],"type":"ClusterIP","sessionAffinity":"None","internalTrafficPolicy":"Cluster"},"status":{"loadBalancer":{}}}`},
		{"service named target", svc, `{"spec":{"ports":[{"port":53,"protocol":"UDP","targetPort":"dns"}]}}`, `{"spec":{"ports":[{"port":53,"protocol":"UDP","targetPort":"dns"}],"type":"ClusterIP","sessionAffinity":"None","internalTrafficPolicy":"Cluster"},"status":{"loadBalancer":{}}}`},
		{"service empty target name", svc, `{"spec":{"ports":[{"port":53,"targetPort":""}]}}`, `{"spec":{"ports":[{"port":53,"protocol":"TCP","targetPort":53}],"type":"ClusterIP","sessionAffinity":"None","internalTrafficPolicy":"Cluster"},"status":{"loadBalancer":{}}}`},
		{"service headless", svc, `{"spec":{"clusterIP":"None"}}`, `{"spec":{"clusterIP":"None","type":"ClusterIP","sessionAffinity":"None","internalTrafficPolicy":"Cluster"},"status":{"loadBalancer":{}}}`},
		{"service external name", svc, `{"spec":{"type":"ExternalName","externalName":"a.example"}}`, `{"spec":{"type":"ExternalName","externalName":"a.example","sessionAffinity":"None"},"status":{"loadBalancer":{}}}`},
		{"service affinity none drops its config", svc, `{"spec":{"sessionAffinity":"None","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":1}}}}`, `{"spec":{"type":"ClusterIP","sessionAffinity":"None","internalTrafficPolicy":"Cluster"},"status":{"loadBalancer":{}}}`},
		{"service affinity client", svc, `{"spec":{"sessionAffinity":"ClientIP"}}`, `{"spec":{"type":"ClusterIP","sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":10800}},"internalTrafficPolicy":"Cluster"},"status":{"loadBalancer":{}}}`},
		{"service affinity client half", svc, `{"spec":{"sessionAffinity":"ClientIP","sessionAffinityConfig":{}}}`, `{"spec":{"type":"ClusterIP","sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":10800}},"internalTrafficPolicy":"Cluster"},"status":{"loadBalancer":{}}}`},
		{"service affinity client kept", svc, `{"spec":{"sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":5}}}}`, `{"spec":{"type":"ClusterIP","sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":5}},"internalTrafficPolicy":"Cluster"},"status":{"loadBalancer":{}}}`},
		{"service node port", svc, `{"spec":{"type":"NodePort"}}`, `{"spec":{"type":"NodePort","sessionAffinity":"None","externalTrafficPolicy":"Cluster","internalTrafficPolicy":"Cluster"},"status":{"loadBalancer":{}}}`},
		{"service load balancer", svc, `{"spec":{"type":"LoadBalancer"},"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"},{"hostname":"lb"}]}}}`, `{"spec":{"type":"LoadBalancer","sessionAffinity":"None","externalTrafficPolicy":"Cluster","internalTrafficPolicy":"Cluster","allocateLoadBalancerNodePorts":true},"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1","ipMode":"VIP"},{"hostname":"lb"}]}}}`},
		{"service external ips", svc, `{"spec":{"externalIPs":["192.0.2.1"]}}`, `{"spec":{"type":"ClusterIP","externalIPs":["192.0.2.1"],"sessionAffinity":"None","externalTrafficPolicy":"Cluster","internalTrafficPolicy":"Cluster"},"status":{"loadBalancer":{}}}`},
		{"service policies kept", svc, `{"spec":{"type":"ClusterIP","internalTrafficPolicy":"Local"}}`, `{"spec":{"type":"ClusterIP","sessionAffinity":"None","internalTrafficPolicy":"Local"},"status":{"loadBalancer":{}}}`},
		{"service list", svcList, `{"items":[{},{"spec":{"type":"ExternalName"}}]}`, `{"metadata":{},"items":[{"spec":{"type":"ClusterIP","sessionAffinity":"None","internalTrafficPolicy":"Cluster"},"status":{"loadBalancer":{}}},{"spec":{"type":"ExternalName","sessionAffinity":"None"},"status":{"loadBalancer":{}}}]}`},

		{"pod empty", pod, `{}`, `{"spec":{"containers":null,"enableServiceLinks":true,` + podDefaults + `},"status":{}}`},
		{"pod container", pod, `{"spec":{"containers":[{"name":"c","image":"host"}]}}`, `{"spec":{"containers":[{"name":"c","image":"host","imagePullPolicy":"Always",` + ctrDefaults + `}],"enableServiceLinks":true,` + podDefaults + `},"status":{}}`},
		{"pod ports", pod, `{"spec":{"containers":[{"name":"c","image":"a:1","ports":[{"containerPort":80},{"containerPort":53,"protocol":"UDP"}]}]}}`, `{"spec":{"containers":[{"name":"c","image":"a:1","imagePullPolicy":"IfNotPresent","ports":[{"containerPort":80,"protocol":"TCP"},{"containerPort":53,"protocol":"UDP"}],` + ctrDefaults + `}],"enableServiceLinks":true,` + podDefaults + `},"status":{}}`},
		{"pod host network", pod, `{"spec":{"hostNetwork":true,"containers":[{"name":"c","image":"a:1","ports":[{"containerPort":80},{"containerPort":81,"hostPort":82}]}]}}`, `{"spec":{"hostNetwork":true,"containers":[{"name":"c","image":"a:1","imagePullPolicy":"IfNotPresent","ports":[{"containerPort":80,"hostPort":80,"protocol":"TCP"},{"containerPort":81,"hostPort":82,"protocol":"TCP"}],` + ctrDefaults + `}],"enableServiceLinks":true,` + podDefaults + `},"status":{}}`},
		{"pod http probe", pod, `{"spec":{"containers":[{"name":"c","image":"a:1","readinessProbe":{"httpGet":{"port":80}}}]}}`, `{"spec":{"containers":[{"name":"c","image":"a:1","imagePullPolicy":"IfNotPresent","readinessProbe":{"httpGet":{"port":80,"path":"/","scheme":"HTTP"},"timeoutSeconds":1,"periodSeconds":10,"successThreshold":1,"failureThreshold":3},` + ctrDefaults + `}],"enableServiceLinks":true,` + podDefaults + `},"status":{}}`},
		{"pod probe kept", pod, `{"spec":{"containers":[{"name":"c","image":"a:1","startupProbe":{"tcpSocket":{"port":80},"timeoutSeconds":2,"periodSeconds":3,"successThreshold":4,"failureThreshold":5}}]}}`, `{"spec":{"containers":[{"name":"c","image":"a:1","imagePullPolicy":"IfNotPresent","startupProbe":{"tcpSocket":{"port":80},"timeoutSeconds":2,"periodSeconds":3,"successThreshold":4,"failureThreshold":5},` + ctrDefaults + `}],"enableServiceLinks":true,` + podDefaults + `},"status":{}}`},
		{"pod grpc probe and hooks", pod, `{"spec":{"containers":[{"name":"c","image":"a:1","livenessProbe":{"grpc":{"port":80}},"lifecycle":{"preStop":{"httpGet":{"port":1}},"postStart":{"exec":{}}}}]}}`, `{"spec":{"containers":[{"name":"c","image":"a:1","imagePullPolicy":"IfNotPresent","livenessProbe":{"grpc":{"port":80,"service":""},"timeoutSeconds":1,"periodSeconds":10,"successThreshold":1,"failureThreshold":3},"lifecycle":{"preStop":{"httpGet":{"port":1,"path":"/","scheme":"HTTP"}},"postStart":{"exec":{}}},` + ctrDefaults + `}],"enableServiceLinks":true,` + podDefaults + `},"status":{}}`},
		{"pod field reference", pod, `{"spec":{"containers":[{"name":"c","image":"a:1","env":[{"name":"A","valueFrom":{"fieldRef":{"fieldPath":"metadata.name"}}}]}]}}`, `{"spec":{"containers":[{"name":"c","image":"a:1","imagePullPolicy":"IfNotPresent","env":[{"name":"A","valueFrom":{"fieldRef":{"apiVersion":"v1","fieldPath":"metadata.name"}}}],` + ctrDefaults + `}],"enableServiceLinks":true,` + podDefaults + `},"status":{}}`},
		{"pod limits become requests", pod, `{"spec":{"containers":[{"name":"c","image":"a:1","resources":{"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"100m"}}}]}}`, `{"spec":{"containers":[{"name":"c","image":"a:1","imagePullPolicy":"IfNotPresent","resources":{"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"100m","memory":"1Gi"}},"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File"}],"enableServiceLinks":true,` + podDefaults + `},"status":{}}`},
		{"pod tiny quantity is rounded", pod, `{"spec":{"containers":[{"name":"c","image":"a:1","resources":{"requests":{"cpu":"1100u"}}}]}}`, `{"spec":{"containers":[{"name":"c","image":"a:1","imagePullPolicy":"IfNotPresent","resources":{"requests":{"cpu":"2m"}},"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File"}],"enableServiceLinks":true,` + podDefaults + `},"status":{}}`},
		{"pod init and ephemeral containers", pod, `{"spec":{"containers":null,"initContainers":[{"name":"i","image":"a:1"}],"ephemeralContainers":[{"name":"e","image":"a:1","targetContainerName":"c"}]}}`, `{"spec":{"containers":null,"initContainers":[{"name":"i","image":"a:1","imagePullPolicy":"IfNotPresent",` + ctrDefaults + `}],"ephemeralContainers":[{"name":"e","image":"a:1","targetContainerName":"c","imagePullPolicy":"IfNotPresent",` + ctrDefaults + `}],"enableServiceLinks":true,` + podDefaults + `},"status":{}}`},
		{"pod volumes", pod, `{"spec":{"containers":null,"volumes":[{"name":"a"},{"name":"b","configMap":{"name":"x"}},{"name":"c","secret":{}},{"name":"d","downwardAPI":{}},{"name":"e","projected":{"sources":null}},{"name":"f","hostPath":{"path":"/"}}]}}`, `{"spec":{"containers":null,"volumes":[{"name":"a","emptyDir":{}},{"name":"b","configMap":{"name":"x","defaultMode":420}},{"name":"c","secret":{"defaultMode":420}},{"name":"d","downwardAPI":{"defaultMode":420}},{"name":"e","projected":{"sources":null,"defaultMode":420}},{"name":"f","hostPath":{"path":"/","type":""}}],"enableServiceLinks":true,` + podDefaults + `},"status":{}}`},
		{"pod values kept", pod, `{"spec":{"containers":null,"restartPolicy":"Never","terminationGracePeriodSeconds":0,"dnsPolicy":"None","schedulerName":"mine","enableServiceLinks":false,"securityContext":{"runAsUser":1}}}`, `{"spec":{"containers":null,"restartPolicy":"Never","terminationGracePeriodSeconds":0,"dnsPolicy":"None","schedulerName":"mine","enableServiceLinks":false,"securityContext":{"runAsUser":1}},"status":{}}`},

		{"deployment empty", dep, `{}`, `{"spec":{"replicas":1,"selector":null,"template":{"spec":{"containers":null,` + podDefaults + `}},"strategy":{"type":"RollingUpdate","rollingUpdate":{"maxUnavailable":"25%","maxSurge":"25%"}},"revisionHistoryLimit":10,"progressDeadlineSeconds":600},"status":{}}`},
		{"deployment half strategy", dep, `{"spec":{"strategy":{"rollingUpdate":{"maxSurge":1}}}}`, `{"spec":{"replicas":1,"selector":null,"template":{"spec":{"containers":null,` + podDefaults + `}},"strategy":{"type":"RollingUpdate","rollingUpdate":{"maxUnavailable":"25%","maxSurge":1}},"revisionHistoryLimit":10,"progressDeadlineSeconds":600},"status":{}}`},
		{"deployment zero kept", dep, `{"spec":{"replicas":0,"revisionHistoryLimit":0,"progressDeadlineSeconds":0,"strategy":{"rollingUpdate":{"maxUnavailable":0}}}}`, `{"spec":{"replicas":0,"selector":null,"template":{"spec":{"containers":null,` + podDefaults + `}},"strategy":{"type":"RollingUpdate","rollingUpdate":{"maxUnavailable":0,"maxSurge":"25%"}},"revisionHistoryLimit":0,"progressDeadlineSeconds":0},"status":{}}`},
		{"deployment recreate", dep, `{"spec":{"strategy":{"type":"Recreate"}}}`, `{"spec":{"replicas":1,"selector":null,"template":{"spec":{"containers":null,` + podDefaults + `}},"strategy":{"type":"Recreate"},"revisionHistoryLimit":10,"progressDeadlineSeconds":600},"status":{}}`},
		{"template keeps its limits", rs, `{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"a:1","resources":{"limits":{"cpu":"1"}}}]}}}}`, `{"spec":{"replicas":1,"selector":null,"template":{"spec":{"containers":[{"name":"c","image":"a:1","imagePullPolicy":"IfNotPresent","resources":{"limits":{"cpu":"1"}},"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File"}],` + podDefaults + `}}},"status":{"replicas":0}}`},

		{"namespace", ns, `{"metadata":{"name":"a"}}`, `{"metadata":{"name":"a","labels":{"kubernetes.io/metadata.name":"a"}},"spec":{},"status":{"phase":"Active"}}`},
		{"namespace label is corrected", ns, `{"metadata":{"name":"a","labels":{"kubernetes.io/metadata.name":"b","x":"y"}},"status":{"phase":"Terminating"}}`, `{"metadata":{"name":"a","labels":{"kubernetes.io/metadata.name":"a","x":"y"}},"spec":{},"status":{"phase":"Terminating"}}`},
		{"namespace name to be generated", ns, `{"metadata":{"generateName":"a-"}}`, `{"metadata":{"generateName":"a-"},"spec":{},"status":{"phase":"Active"}}`},
		{"node allocatable", node, `{"status":{"capacity":{"cpu":"2"}}}`, `{"spec":{},"status":{"capacity":{"cpu":"2"},"allocatable":{"cpu":"2"},"daemonEndpoints":{"kubeletEndpoint":{"Port":0}},"nodeInfo":{"machineID":"","systemUUID":"","bootID":"","kernelVersion":"","osImage":"","containerRuntimeVersion":"","kubeletVersion":"","kubeProxyVersion":"","operatingSystem":"","architecture":""}}}`},
		{"slice ports", eps, `{"ports":[{"port":80},{"name":"dns","protocol":"UDP","port":53}]}`, `{"endpoints":null,"addressType":"","ports":[{"name":"","protocol":"TCP","port":80},{"name":"dns","protocol":"UDP","port":53}]}`},
		{"config map has none", cm, `{"data":{"a":"b"}}`, `{"data":{"a":"b"}}`},
	}
	scheme := newScheme(t)
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			got, want := row.kind(), row.kind()
			if err := json.Unmarshal([]byte(row.in), got); err != nil {
				t.Fatalf("input: %v", err)
			}
			if err := json.Unmarshal([]byte(row.want), want); err != nil {
				t.Fatalf("want: %v", err)
			}
			scheme.Default(got)
			g, _ := json.Marshal(got)
			w, _ := json.Marshal(want)
			if string(g) != string(w) {
				t.Errorf("got  %s\nwant %s", g, w)
			}
		})
	}
}

func TestPullPolicy(t *testing.T) {
	rows := []struct {
		image string
		want  corev1.PullPolicy
	}{
		{"host", corev1.PullAlways},
		{"nginx:latest", corev1.PullAlways},
		{"registry.example:5000/nginx", corev1.PullAlways},
		{"registry.example:5000/nginx:latest", corev1.PullAlways},
		{"nginx:1.27", corev1.PullIfNotPresent},
		{"registry.example:5000/nginx:1", corev1.PullIfNotPresent},
		{"nginx@sha256:0123", corev1.PullIfNotPresent},
		{"nginx:latest@sha256:0123", corev1.PullIfNotPresent},
		{"", corev1.PullIfNotPresent},
	}
	for _, row := range rows {
		if got := pullPolicy(row.image); got != row.want {
			t.Errorf("%q: got %s, want %s", row.image, got, row.want)
		}
	}
}

// TestTwice: whatever the object, applying the defaults twice is applying
// them once. Decoding from storage relies on it.
func TestTwice(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	filler := randfill.NewWithSeed(seed).NilChance(0.4).NumElements(0, 3).MaxDepth(12)
	scheme := newScheme(t)
	kinds := []runtime.Object{
		&corev1.Service{}, &corev1.Pod{}, &corev1.Namespace{}, &corev1.Node{}, &discoveryv1.EndpointSlice{},
		&appsv1.Deployment{}, &appsv1.ReplicaSet{}, &corev1.ServiceList{}, &corev1.PodList{},
	}
	for round := range 60 {
		for _, kind := range kinds {
			obj := kind.DeepCopyObject()
			filler.Fill(obj)
			scheme.Default(obj)
			once := obj.DeepCopyObject()
			scheme.Default(obj)
			if !equality.Semantic.DeepEqual(once, obj) {
				t.Fatalf("round %d: %T changed by the second pass", round, obj)
			}
		}
	}
}
