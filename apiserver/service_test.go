// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	applycore "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"
)

// service is a Service with one port.
func service(name string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": name},
			Ports:    []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}
}

// locked says which Service has an address's lock: namespace/name, or "".
func locked(t testing.TB, c kubernetes.Interface, ip string) string {
	t.Helper()
	lock, err := c.NetworkingV1().IPAddresses().Get(context.Background(), ip, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return ""
	}
	must(t, err)
	return lock.Spec.ParentRef.Namespace + "/" + lock.Spec.ParentRef.Name
}

func TestServiceAddress(t *testing.T) {
	i, ns := sharedServer(t)
	c := i.admin(t)
	services := c.CoreV1().Services(ns)
	made, err := services.Create(t.Context(), service("s"), metav1.CreateOptions{})
	must(t, err)
	ip := made.Spec.ClusterIP
	addr, err := netip.ParseAddr(ip)
	must(t, err)
	if !testCIDRs[0].Contains(addr) || len(made.Spec.ClusterIPs) != 1 || made.Spec.ClusterIPs[0] != ip {
		t.Errorf("clusterIP %s, clusterIPs %v", ip, made.Spec.ClusterIPs)
	}
	if len(made.Spec.IPFamilies) != 1 || made.Spec.IPFamilies[0] != corev1.IPv4Protocol || *made.Spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack {
		t.Errorf("families %v, policy %v", made.Spec.IPFamilies, *made.Spec.IPFamilyPolicy)
	}
	if got := locked(t, c, ip); got != ns+"/s" {
		t.Errorf("the lock is %q's", got)
	}

	t.Run("an update without it keeps it", func(t *testing.T) {
		update := service("s")
		update.ResourceVersion = made.ResourceVersion
		update.Spec.Ports[0].Port = 81
		got, err := services.Update(t.Context(), update, metav1.UpdateOptions{})
		must(t, err)
		if got.Spec.ClusterIP != ip || got.Spec.Ports[0].Port != 81 {
			t.Errorf("got %v", got.Spec)
		}
	})
	t.Run("to ExternalName and back", func(t *testing.T) {
		patch := `{"spec":{"type":"ExternalName","externalName":"example.org","selector":null,"ports":null}}`
		got, err := services.Patch(t.Context(), "s", types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		must(t, err)
		if got.Spec.ClusterIP != "" || len(got.Spec.ClusterIPs) > 0 || locked(t, c, ip) != "" {
			t.Errorf("spec %v, lock %q", got.Spec, locked(t, c, ip))
		}
		patch = `{"spec":{"type":"ClusterIP","externalName":null,"ports":[{"port":80}]}}`
		got, err = services.Patch(t.Context(), "s", types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		must(t, err)
		if ip = got.Spec.ClusterIP; locked(t, c, ip) != ns+"/s" {
			t.Errorf("spec %v, lock %q", got.Spec, locked(t, c, ip))
		}
	})
	t.Run("deletion releases", func(t *testing.T) {
		must(t, services.Delete(t.Context(), "s", metav1.DeleteOptions{}))
		if got := locked(t, c, ip); got != "" {
			t.Errorf("the lock is %q's", got)
		}
	})
	t.Run("headless has none", func(t *testing.T) {
		s := service("headless")
		s.Spec.ClusterIP = corev1.ClusterIPNone
		got, err := services.Create(t.Context(), s, metav1.CreateOptions{})
		must(t, err)
		if got.Spec.ClusterIP != corev1.ClusterIPNone {
			t.Errorf("spec %v", got.Spec)
		}
	})
}

// TestServiceErrors checks the words that users know.
func TestServiceErrors(t *testing.T) {
	i, ns := sharedServer(t)
	c := i.admin(t)
	services := c.CoreV1().Services(ns)
	mine := service("mine")
	mine.Spec.ClusterIP = "10.96.0.77"
	_, err := services.Create(t.Context(), mine, metav1.CreateOptions{})
	must(t, err)
	for _, row := range []struct {
		name string
		do   func() error
		want string
	}{
		{"taken address", func() error {
			s := service("taken")
			s.Spec.ClusterIP = "10.96.0.77"
			_, err := services.Create(t.Context(), s, metav1.CreateOptions{})
			return err
		}, `Service "taken" is invalid: spec.clusterIPs: Invalid value: ["10.96.0.77"]: failed to allocate IP 10.96.0.77: provided IP is already allocated`},
		{"address out of range", func() error {
			s := service("far")
			s.Spec.ClusterIP = "10.97.0.1"
			_, err := services.Create(t.Context(), s, metav1.CreateOptions{})
			return err
		}, `the provided network does not match the current range. The range of valid IPs is 10.96.0.0/16`},
		{"immutable address", func() error {
			_, err := services.Patch(t.Context(), "mine", types.MergePatchType, []byte(`{"spec":{"clusterIP":"10.96.0.78"}}`), metav1.PatchOptions{})
			return err
		}, `spec.clusterIPs[0]: Invalid value: ["10.96.0.78"]: may not change once set`},
		{"port 70000", func() error {
			s := service("port")
			s.Spec.Ports[0].Port = 70000
			_, err := services.Create(t.Context(), s, metav1.CreateOptions{})
			return err
		}, `Service "port" is invalid: spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive`},
		{"unknown field", func() error {
			body := `{"apiVersion":"v1","kind":"Service","metadata":{"name":"odd"},"spec":{"ports":[{"port":80,"prot":80}]}}`
			return c.CoreV1().RESTClient().Post().Namespace(ns).Resource("services").Param("fieldValidation", "Strict").
				Body([]byte(body)).SetHeader("Content-Type", "application/json").Do(t.Context()).Error()
		}, `strict decoding error: unknown field "spec.ports[0].prot"`},
		{"duplicate port names", func() error {
			s := service("twice")
			s.Spec.Ports = []corev1.ServicePort{{Name: "a", Port: 80}, {Name: "a", Port: 81}}
			_, err := services.Create(t.Context(), s, metav1.CreateOptions{})
			return err
		}, `spec.ports[1].name: Duplicate value: "a"`},
		{"same name", func() error {
			_, err := services.Create(t.Context(), service("mine"), metav1.CreateOptions{})
			return err
		}, `services "mine" already exists`},
		{"no such namespace", func() error {
			_, err := c.CoreV1().Services("nowhere").Create(t.Context(), service("s"), metav1.CreateOptions{})
			return err
		}, `namespaces "nowhere" not found`},
		{"wrong name", func() error {
			_, err := services.Create(t.Context(), service("Not_A_Name"), metav1.CreateOptions{})
			return err
		}, `metadata.name: Invalid value: "Not_A_Name"`},
		{"missing", func() error {
			_, err := services.Get(t.Context(), "missing", metav1.GetOptions{})
			return err
		}, `services "missing" not found`},
	} {
		t.Run(row.name, func(t *testing.T) {
			err := row.do()
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got  %v\nwant %s", err, row.want)
			}
			if _, ok := err.(apierrors.APIStatus); !ok {
				t.Errorf("not a Status: %T", err)
			}
		})
	}
	// What failed holds nothing: the only locks are of Services that exist.
	checkLocks(t, c, ns)
}

// checkLocks checks that every address of a Service has a lock and every lock
// of the namespace a Service, and that no address is given twice.
func checkLocks(t testing.TB, c kubernetes.Interface, ns string) {
	t.Helper()
	has := map[string]string{}
	list, err := c.CoreV1().Services(ns).List(t.Context(), metav1.ListOptions{})
	must(t, err)
	for _, s := range list.Items {
		for _, ip := range s.Spec.ClusterIPs {
			if ip == corev1.ClusterIPNone {
				continue
			}
			if other, ok := has[ip]; ok {
				t.Errorf("%s is given to %s and %s", ip, other, s.Name)
			}
			has[ip] = s.Name
		}
	}
	locks, err := c.NetworkingV1().IPAddresses().List(t.Context(), metav1.ListOptions{})
	must(t, err)
	for _, lock := range locks.Items {
		if lock.Spec.ParentRef.Namespace != ns {
			continue
		}
		if has[lock.Name] != lock.Spec.ParentRef.Name {
			t.Errorf("%s is locked for %s but given to %q", lock.Name, lock.Spec.ParentRef.Name, has[lock.Name])
		}
		delete(has, lock.Name)
	}
	for ip, name := range has {
		t.Errorf("%s of %s has no lock", ip, name)
	}
}

// TestServiceRace checks that many creators at once, of which some fail, some
// apply the same Service and some delete, never share an address and leave no
// lock behind. The range is small, so that they meet.
func TestServiceRace(t *testing.T) {
	i := started(t, t.TempDir(), netip.MustParsePrefix("10.96.0.0/24"))
	c := i.admin(t)
	services := c.CoreV1().Services("default")
	var wg sync.WaitGroup
	for n := range 100 {
		wg.Go(func() {
			s := service(fmt.Sprint("s", n))
			if n%10 == 9 {
				s.Spec.Ports[0].Port = 70000
			}
			_, err := services.Create(t.Context(), s, metav1.CreateOptions{})
			if (err != nil) != (n%10 == 9) {
				t.Errorf("s%d: %v", n, err)
			}
			if err == nil && n%10 == 8 {
				if err := services.Delete(t.Context(), s.Name, metav1.DeleteOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for n := range 20 {
		wg.Go(func() {
			s := applycore.Service("applied", "default").WithSpec(applycore.ServiceSpec().WithPorts(applycore.ServicePort().WithPort(80)))
			_, err := services.Apply(t.Context(), s, metav1.ApplyOptions{FieldManager: fmt.Sprint("m", n), Force: true})
			if err != nil && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	checkLocks(t, c, "default")
	list, err := services.List(t.Context(), metav1.ListOptions{})
	must(t, err)
	if len(list.Items) != 81 {
		t.Errorf("%d services, want 81", len(list.Items))
	}
}

// TestServiceFull checks that a full range says so, and serves again when an
// address has been given back.
func TestServiceFull(t *testing.T) {
	i := started(t, t.TempDir(), netip.MustParsePrefix("10.96.0.0/29"))
	c := i.admin(t)
	services := c.CoreV1().Services("default")
	var err error
	n := 0
	for ; err == nil && n < 10; n++ {
		_, err = services.Create(t.Context(), service(fmt.Sprint("s", n)), metav1.CreateOptions{})
	}
	if err == nil || !strings.Contains(err.Error(), "range is full") {
		t.Fatalf("after %d services: %v", n, err)
	}
	must(t, services.Delete(t.Context(), "s0", metav1.DeleteOptions{}))
	_, err = services.Create(t.Context(), service("again"), metav1.CreateOptions{})
	must(t, err)
	checkLocks(t, c, "default")
}

func TestServiceDryRun(t *testing.T) {
	i, ns := sharedServer(t)
	c := i.admin(t)
	services := c.CoreV1().Services(ns)
	dry := []string{metav1.DryRunAll}
	got, err := services.Create(t.Context(), service("dry"), metav1.CreateOptions{DryRun: dry})
	must(t, err)
	if got.Spec.ClusterIP == "" || locked(t, c, got.Spec.ClusterIP) == ns+"/dry" {
		t.Errorf("clusterIP %q, lock %q", got.Spec.ClusterIP, locked(t, c, got.Spec.ClusterIP))
	}
	if _, err := services.Get(t.Context(), "dry", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("stored: %v", err)
	}
	wet, err := services.Create(t.Context(), service("wet"), metav1.CreateOptions{})
	must(t, err)
	patch := []byte(`{"spec":{"type":"ExternalName","externalName":"example.org","selector":null,"ports":null}}`)
	_, err = services.Patch(t.Context(), "wet", types.MergePatchType, patch, metav1.PatchOptions{DryRun: dry})
	must(t, err)
	must(t, services.Delete(t.Context(), "wet", metav1.DeleteOptions{DryRun: dry}))
	if locked(t, c, wet.Spec.ClusterIP) != ns+"/wet" {
		t.Error("a dry run released the address")
	}
}

func TestServiceDualStack(t *testing.T) {
	i := started(t, t.TempDir(), netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112"))
	c := i.admin(t)
	services := c.CoreV1().Services("default")
	both := corev1.IPFamilyPolicyRequireDualStack
	s := service("both")
	s.Spec.IPFamilyPolicy = &both
	got, err := services.Create(t.Context(), s, metav1.CreateOptions{})
	must(t, err)
	if len(got.Spec.ClusterIPs) != 2 || !strings.HasPrefix(got.Spec.ClusterIPs[1], "fd00:96::") {
		t.Fatalf("clusterIPs %v", got.Spec.ClusterIPs)
	}
	second := got.Spec.ClusterIPs[1]
	patch := []byte(`{"spec":{"ipFamilyPolicy":"SingleStack"}}`)
	got, err = services.Patch(t.Context(), "both", types.MergePatchType, patch, metav1.PatchOptions{})
	must(t, err)
	if len(got.Spec.ClusterIPs) != 1 || locked(t, c, second) != "" {
		t.Errorf("clusterIPs %v, lock of the second %q", got.Spec.ClusterIPs, locked(t, c, second))
	}
	patch = []byte(`{"spec":{"ipFamilyPolicy":"PreferDualStack"}}`)
	got, err = services.Patch(t.Context(), "both", types.MergePatchType, patch, metav1.PatchOptions{})
	must(t, err)
	if len(got.Spec.ClusterIPs) != 2 {
		t.Errorf("clusterIPs %v", got.Spec.ClusterIPs)
	}
	checkLocks(t, c, "default")
}

// TestServiceUpdateRace checks that updates which meet conflicts, of which the
// library's hooks do not tell, leave addresses and locks in agreement.
func TestServiceUpdateRace(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	i, ns := sharedServer(t)
	c := i.admin(t)
	services := c.CoreV1().Services(ns)
	_, err := services.Create(t.Context(), service("s"), metav1.CreateOptions{})
	must(t, err)
	patches := []string{
		`{"spec":{"type":"ExternalName","externalName":"example.org","clusterIP":null,"clusterIPs":null,"ipFamilies":null,"ipFamilyPolicy":null,"selector":null,"ports":null}}`,
		`{"spec":{"type":"ClusterIP","externalName":null,"ports":[{"port":80}]}}`,
		`{"metadata":{"labels":{"x":"%d"}}}`,
	}
	var wg sync.WaitGroup
	for worker := range 8 {
		random := rand.New(rand.NewPCG(seed, uint64(worker)))
		wg.Go(func() {
			for n := range 15 {
				patch := patches[random.IntN(len(patches))]
				if strings.Contains(patch, "%d") {
					patch = fmt.Sprintf(patch, n)
				}
				_, err := services.Patch(t.Context(), "s", types.MergePatchType, []byte(patch), metav1.PatchOptions{})
				if err != nil && !apierrors.IsConflict(err) && !apierrors.IsInvalid(err) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	checkLocks(t, c, ns)
}
