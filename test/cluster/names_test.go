// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// TestNames: the system's own resolver and dig, on every node, get what the
// DNS specification for Kubernetes says, from that node's agent.
func TestNames(t *testing.T) {
	w := shared(t)
	w.apply(t, `
apiVersion: v1
kind: Service
metadata: {name: heads, namespace: shop}
spec:
  clusterIP: None
  selector: {app: ticker}
  ports: [{name: ticks, port: 7000, protocol: UDP, targetPort: ticks}]
`)
	t.Cleanup(func() { w.kubectl(t, "-n", namespace, "delete", "service", "heads") })
	var heads []string
	for _, p := range w.pods(t, "app=ticker") {
		heads = append(heads, p.Status.PodIP)
	}
	slices.Sort(heads)
	orders, ticker := w.service(t, "orders").Spec.ClusterIP, w.service(t, "ticker").Spec.ClusterIP
	dns, err := w.kube.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	reverse := func(ip string) string {
		p := strings.Split(ip, ".")
		slices.Reverse(p)
		return strings.Join(p, ".") + ".in-addr.arpa."
	}
	for _, node := range nodes {
		pod := w.clientOn(t, node)
		conf := w.in(t, pod, "cat", "/etc/resolv.conf")
		for _, want := range []string{"nameserver " + dns.Spec.ClusterIP + "\n", "search shop.svc.cluster.local svc.cluster.local cluster.local", "ndots:5"} {
			if !strings.Contains(conf, want) {
				t.Errorf("%s: resolv.conf lacks %q:\n%s", node, want, conf)
			}
		}
		before := w.report(t, node).DNS.Queries
		asked := 0
		for _, name := range []string{"orders", "orders.shop", "orders.shop.svc.cluster.local"} {
			asked++
			if out := w.exec(t, pod, "getent", "hosts", name); out.code != 0 || !strings.HasPrefix(out.stdout, orders+" ") {
				t.Errorf("%s: getent hosts %s: want %s\n%s", node, name, orders, out)
			}
		}
		for _, tc := range []struct {
			args, status string
			want         []string // answers, sorted
		}{
			{"orders.shop.svc.cluster.local A", "NOERROR", []string{orders}},
			{"oRdErS.sHoP.svc.cluster.local A", "NOERROR", []string{orders}},
			{"+tcp orders.shop.svc.cluster.local A", "NOERROR", []string{orders}},
			{"+search orders A", "NOERROR", []string{orders}},
			{"_http._tcp.orders.shop.svc.cluster.local SRV", "NOERROR", []string{"0 100 80 orders.shop.svc.cluster.local."}},
			{"_admin._tcp.orders.shop.svc.cluster.local SRV", "NOERROR", []string{"0 100 9000 orders.shop.svc.cluster.local."}},
			{"_ticks._udp.ticker.shop.svc.cluster.local SRV", "NOERROR", []string{"0 100 7000 ticker.shop.svc.cluster.local."}},
			{reverse(orders) + " PTR", "NOERROR", []string{"orders.shop.svc.cluster.local."}},
			{reverse(ticker) + " PTR", "NOERROR", []string{"ticker.shop.svc.cluster.local."}},
			{"heads.shop.svc.cluster.local A", "NOERROR", heads},
			{"kubernetes.default.svc.cluster.local A", "NOERROR", []string{"10.96.0.1"}},
			{"kube-dns.kube-system.svc.cluster.local A", "NOERROR", []string{dns.Spec.ClusterIP}},
			{"orders.shop.svc.cluster.local AAAA", "NOERROR", nil},
			{"_nope._tcp.orders.shop.svc.cluster.local SRV", "NXDOMAIN", nil},
			{"nothing.shop.svc.cluster.local A", "NXDOMAIN", nil},
			{"orders.nowhere.svc.cluster.local A", "NXDOMAIN", nil},
			{"cluster.local SOA", "NOERROR", []string{"SOA"}},
			{"dns-version.cluster.local TXT", "NOERROR", []string{`"1.1.0"`}},
		} {
			asked++
			r := w.exec(t, pod, append([]string{"dig", "+time=2", "+tries=1"}, strings.Fields(tc.args)...)...)
			if got, answers := digStatus(r.stdout), digAnswers(r.stdout); r.code != 0 || got != tc.status || !sameAnswers(answers, tc.want) {
				t.Errorf("%s: dig %s: %s %q, want %s %q", node, tc.args, got, answers, tc.status, tc.want)
			}
		}
		if n := w.report(t, node).DNS.Queries - before; n < uint64(asked) {
			t.Errorf("%s: its agent counted %d queries, want at least the %d asked on its node", node, n, asked)
		} else {
			t.Logf("%s: %d lookups, its own agent answered %d queries", node, asked, n)
		}
	}
}

// digStatus finds the response code in dig's output.
func digStatus(out string) string {
	_, rest, _ := strings.Cut(out, "status: ")
	status, _, _ := strings.Cut(rest, ",")
	return status
}

// digAnswers returns the data of the records in dig's answer section, sorted; of
// an SOA only that it is one.
func digAnswers(out string) []string {
	_, rest, found := strings.Cut(out, ";; ANSWER SECTION:\n")
	if !found {
		return nil
	}
	section, _, _ := strings.Cut(rest, "\n\n")
	var data []string
	for line := range strings.Lines(section) {
		if f := strings.Fields(line); len(f) > 4 && f[3] == "SOA" {
			data = append(data, "SOA")
		} else if len(f) > 4 {
			data = append(data, strings.Join(f[4:], " "))
		}
	}
	slices.Sort(data)
	return data
}

// sameAnswers compares answers with what is wanted. The weight of an SRV record
// is the server's to choose.
func sameAnswers(got, want []string) bool {
	return slices.EqualFunc(got, want, func(g, w string) bool {
		a, b := strings.Fields(g), strings.Fields(w)
		if len(a) == 4 && len(b) == 4 {
			a[1] = b[1]
		}
		return slices.Equal(a, b)
	})
}

// sighting is what shop watch-name reports of a name.
type sighting struct {
	Name, Addr, Outcome, Error, Pod string
	Asked, Missing, Lost            int
	LastMissing                     time.Time `json:"last_missing"`
	FirstAnswer                     time.Time `json:"first_answer"`
	FirstOK                         time.Time `json:"first_ok"`
	ConnectMS                       float64   `json:"connect_ms"`
	AskedAfter                      int       `json:"asked_after"`
	TakenBack                       int       `json:"taken_back"`
}

// sightings has a pod of n2 watch names, one after the other, creates a Service
// of each, and yields what the pod saw of it and when the API server had answered
// the creation. Before that it waits: a name must be asked for in vain first.
func (w *world) sightings(t *testing.T, scenario string, count int, wait time.Duration, flags ...string) iter.Seq2[sighting, time.Time] {
	return func(yield func(sighting, time.Time) bool) {
		services := w.kube.CoreV1().Services(namespace)
		t.Cleanup(func() {
			w.kubectl(t, "-n", namespace, "delete", "service", "-l", "scenario="+scenario)
		})
		args := append([]string{"exec", namespace + "/" + w.clientOn(t, "n2"), "--", "shop", "watch-name"}, flags...)
		for i := range count {
			args = append(args, fmt.Sprintf("%s-%03d:80", scenario, i))
		}
		cmd := w.command(t.Context(), "fairlead", args...)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer cmd.Process.Kill()
		seen := bufio.NewScanner(out)
		time.Sleep(300 * time.Millisecond) // the pod's program begins
		for i := range count {
			name := fmt.Sprintf("%s-%03d", scenario, i)
			time.Sleep(wait)
			_, err := services.Create(t.Context(), &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"scenario": scenario}},
				Spec: corev1.ServiceSpec{
					Selector: map[string]string{"app": "catalog"},
					Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}},
				},
			}, metav1.CreateOptions{})
			created := time.Now()
			if err != nil {
				t.Fatal(err)
			}
			if !seen.Scan() {
				t.Fatalf("the watching pod ended at %s: %v", name, seen.Err())
			}
			var s sighting
			if err := json.Unmarshal(seen.Bytes(), &s); err != nil || s.Name != name {
				t.Fatalf("%s, want that of %s: %v", seen.Text(), name, err)
			}
			if !yield(s, created) {
				return
			}
		}
	}
}

// TestAnswerIsAPromise: a Service is created while a pod on another node asks for
// its name without a pause and connects to the first answer. 200 times over, the
// first connection works and the name is not taken back.
func TestAnswerIsAPromise(t *testing.T) {
	w := shared(t)
	var took []time.Duration
	asked, after := 0, 0
	for s, created := range w.sightings(t, "promise", 200, 0) {
		if s.Outcome != "ok" || s.TakenBack != 0 {
			t.Errorf("%+v", s)
			continue
		}
		asked, after = asked+s.Asked, after+s.AskedAfter
		took = append(took, s.FirstOK.Sub(created))
	}
	t.Logf("from the API's response to the first success on another node: %s; asked %d times before and %d times after the first answer", spread(took), asked, after)
}

// propagation is how long after the API's response a name may still be answered
// "not found" on another node, as docs/dns.md states it.
const propagation = 250 * time.Millisecond

// TestQueryBeforeCreate: a pod asks 5,000 times a second for a name that is
// created then, and for another one, and so on. No query sent later than the
// stated propagation after the API's response is denied, none is lost, and who
// connects to the first answer is served.
func TestQueryBeforeCreate(t *testing.T) {
	w := shared(t)
	var took, denied []time.Duration
	asked, missing := 0, 0
	for s, created := range w.sightings(t, "before", 100, 20*time.Millisecond, "-rate", "5000") {
		if s.Outcome != "ok" || s.TakenBack != 0 || s.Lost != 0 || s.LastMissing.After(created.Add(propagation)) {
			t.Errorf("created %v: %+v", created, s)
			continue
		}
		asked, missing = asked+s.Asked+s.AskedAfter, missing+s.Missing
		took, denied = append(took, s.FirstAnswer.Sub(created)), append(denied, s.LastMissing.Sub(created))
	}
	if missing == 0 {
		t.Error("no name was asked for before it existed")
	}
	t.Logf("names asked for %d times, %d of them too early; from the API's response to the first answer: %s; to the last query denied: %s",
		asked, missing, spread(took), spread(denied))
}

// TestNothingReady: a Service without a ready endpoint says no at once, over TCP
// and UDP, to pods and to the nodes, whether it never had one or lost the last.
func TestNothingReady(t *testing.T) {
	w := shared(t)
	w.apply(t, `
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop, labels: {scenario: nothing}}
spec:
  selector: {app: nobody}
  ports: [{name: a, port: 80}, {name: b, port: 7000, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: unready, namespace: shop, labels: {scenario: nothing}}
spec:
  selector: {app: unready}
  ports: [{name: a, port: 80, targetPort: 8080}, {name: b, port: 7000, protocol: UDP, targetPort: 7007}]
---
apiVersion: v1
kind: Pod
metadata: {name: unready, namespace: shop, labels: {app: unready, scenario: nothing}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: shop
      image: host
      command: [shop, serve]
      readinessProbe: {exec: {command: ["false"]}, periodSeconds: 1}
`)
	t.Cleanup(func() { w.kubectl(t, "-n", namespace, "delete", "service,pod", "-l", "scenario=nothing") })
	w.kubectl(t, "-n", namespace, "wait", "pod", "unready", "--for=jsonpath={.status.phase}=Running", "--timeout=30s")
	check := func(what string) {
		t.Helper()
		for _, name := range []string{"nobody", "unready"} {
			ip := w.service(t, name).Spec.ClusterIP
			for _, node := range nodes {
				pod := w.clientOn(t, node)
				for _, r := range []result{
					w.exec(t, pod, "shop", "get", "http://"+name+"/"),
					w.exec(t, pod, "shop", "udp", name+":7000"),
					w.onNode(t, node, binary("shop"), "get", "http://"+ip+"/"),
					w.onNode(t, node, binary("shop"), "udp", ip+":7000"),
				} {
					if r.code != 1 || one[answer](t, r.stdout).Kind != "refused" {
						t.Errorf("%s, %s from %s: want refused\n%s", what, name, node, r)
					}
				}
			}
		}
	}
	check("never ready")
	// A port that the Service does not have is not silent either.
	r := w.exec(t, w.clientOn(t, "n1"), "shop", "get", "-timeout", "2s", "http://orders:81/")
	t.Logf("a port that the Service does not have: %s", one[answer](t, r.stdout).Kind)

	// Ready, then not any more.
	w.kubectl(t, "-n", namespace, "label", "pod", w.pods(t, "app=client")[0].Name, "scenario-nobody=yes")
	w.kubectl(t, "-n", namespace, "patch", "service", "nobody", "-p",
		`{"spec":{"selector":{"app":null,"scenario-nobody":"yes"},"ports":[{"name":"a","port":80,"targetPort":8080},{"name":"b","port":7000,"protocol":"UDP","targetPort":7007}]}}`)
	eventually(t, 10*time.Second, "nobody answers", func() error {
		if r := w.exec(t, w.clientOn(t, "n2"), "shop", "get", "http://nobody/self"); r.code != 0 {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
	w.in(t, w.clientOn(t, "n2"), "shop", "udp", "nobody:7000")
	w.kubectl(t, "-n", namespace, "label", "pod", w.pods(t, "app=client")[0].Name, "scenario-nobody-")
	eventually(t, 10*time.Second, "nobody refuses", func() error {
		if r := w.exec(t, w.clientOn(t, "n2"), "shop", "get", "http://nobody/self"); r.code == 0 {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
	check("not ready any more")

	explained := w.run(t, "", "fairlead", "explain", namespace+"/"+w.clientOn(t, "n1"), "nobody:80")
	if explained.code == 0 || !strings.Contains(explained.stdout, "nobody") || !strings.Contains(strings.ToLower(explained.stdout), "endpoint") {
		t.Errorf("explain does not name the Service that has no endpoints:\n%s", explained)
	}
}

// TestWalk: explain shows every step from the live system, also as JSON, and its
// probe makes the connection.
func TestWalk(t *testing.T) {
	w := shared(t)
	from := namespace + "/" + w.clientOn(t, "n1")
	ip := w.service(t, "orders").Spec.ClusterIP
	out := w.must(t, "fairlead", "explain", from, "orders:80", "--probe")
	for _, want := range append([]string{"orders.shop.svc.cluster.local", ip, "NOERROR", "read from the kernel", "probe"}, nodes...) {
		if !strings.Contains(out, want) {
			t.Errorf("explain does not show %q:\n%s", want, out)
		}
	}
	for _, p := range w.pods(t, "app=orders") {
		if !strings.Contains(out, fmt.Sprintf("%s:%d", p.Status.PodIP, httpPort(p))) {
			t.Errorf("explain does not show %s at %s:%d:\n%s", p.Name, p.Status.PodIP, httpPort(p), out)
		}
	}
	var walk map[string]any
	if err := json.Unmarshal([]byte(w.must(t, "fairlead", "explain", from, "orders:http", "--json")), &walk); err != nil {
		t.Errorf("explain --json: %v", err)
	}
	t.Logf("\n%s", out)
	out = w.must(t, "fairlead", "explain", from, "ticker:7000/udp", "--probe")
	if !strings.Contains(out, w.service(t, "ticker").Spec.ClusterIP+":7000/udp") || !strings.Contains(out, ":7007") {
		t.Errorf("explain of a UDP port:\n%s", out)
	}

	for _, target := range []string{"nothing:80", "orders:81"} {
		if r := w.run(t, "", "fairlead", "explain", from, target); r.code == 0 {
			t.Errorf("explain of what cannot work succeeds:\n%s", r)
		}
	}
	report := w.must(t, "fairlead", "status")
	for _, node := range nodes {
		if !strings.Contains(report, "node "+node+": ready") {
			t.Errorf("status does not show %s ready:\n%s", node, report)
		}
	}
}
