// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/fairlead/fairlead/model"
)

// Client reaches the API groups a node needs. A full clientset would carry every type of
// Kubernetes into each agent.
type Client struct {
	core, discovery, networking rest.Interface
	servers                     *servers
}

// NewClient reads a kubeconfig; an empty path means the in-cluster configuration. With servers, HOST:PORT each, the API server is reached at these, in this
// order, instead of at the configuration's address.
func NewClient(kubeconfig string, servers ...string) (*Client, error) {
	if kubeconfig == "" {
		cfg, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("read in-cluster configuration: %w; outside a cluster, give --kubeconfig", err)
		}
		return newClient(cfg, servers, true)
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %q: %w", kubeconfig, err)
	}
	return newClient(cfg, servers, false)
}

// NewClientFor uses a configuration that is at hand.
func NewClientFor(cfg *rest.Config, servers ...string) (*Client, error) {
	return newClient(cfg, servers, false)
}

func newClient(cfg *rest.Config, addrs []string, virtual bool) (*Client, error) {
	cfg = rest.CopyConfig(cfg)
	if cfg.UserAgent == "" {
		cfg.UserAgent = "fairlead"
	}
	servers, err := newServers(cfg, addrs, virtual)
	if err != nil {
		return nil, err
	}
	return newClientOf(cfg, servers)
}

func newClientOf(cfg *rest.Config, servers *servers) (*Client, error) {
	wire, err := servers.client()
	if err != nil {
		return nil, err
	}
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	codecs := serializer.NewCodecFactory(scheme).WithoutConversion()
	client := func(path string, gv schema.GroupVersion) (rest.Interface, error) {
		c := rest.CopyConfig(cfg)
		c.APIPath, c.GroupVersion = path, &gv
		c.NegotiatedSerializer = leanly{codecs}
		c.ContentType = runtime.ContentTypeProtobuf
		c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
		r, err := rest.RESTClientForConfigAndClient(c, wire)
		if err != nil {
			return nil, fmt.Errorf("make client for %s: %w", gv, err)
		}
		return r, nil
	}
	core, err := client("/api", corev1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	discovery, err := client("/apis", discoveryv1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	networking, err := client("/apis", networkingv1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	return &Client{core: core, discovery: discovery, networking: networking, servers: servers}, nil
}

// newScheme has the types of the API groups.
func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register types: %w", err)
		}
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	return scheme, nil
}

// Server is the API server's address by the configuration, and where it is really reached if that is elsewhere.
func (c *Client) Server() string { return c.servers.server() }

// servesServiceCIDRs asks whether the API server has the kind ServiceCIDR, which is in networking.k8s.io/v1 since Kubernetes 1.33.
func (c *Client) servesServiceCIDRs(ctx context.Context) (bool, error) {
	var list metav1.APIResourceList
	_, err := c.Get(ctx, "/apis/networking.k8s.io/v1", &list)
	return slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == "servicecidrs" }), err
}

// SetNetworkAvailable says in the Node's status that pods on it can be reached and can reach Services: condition
// NetworkUnavailable is False. It does nothing if the Node says so already.
func (c *Client) SetNetworkAvailable(ctx context.Context, name string) error {
	var n corev1.Node
	if err := c.core.Get().Resource("nodes").Name(name).Do(ctx).Into(&n); err != nil {
		return fmt.Errorf("get node %s: %w", name, rule(err, "get", "nodes"))
	}
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeNetworkUnavailable && cond.Status == corev1.ConditionFalse {
			return nil
		}
	}
	now := metav1.NewTime(time.Now())
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{{
		Type:               corev1.NodeNetworkUnavailable,
		Status:             corev1.ConditionFalse,
		Reason:             "FairleadReady",
		Message:            "Services, routes and DNS are programmed on this node",
		LastHeartbeatTime:  now,
		LastTransitionTime: now,
	}}}})
	if err != nil {
		return fmt.Errorf("encode condition: %w", err)
	}
	err = c.core.Patch(types.StrategicMergePatchType).Resource("nodes").Name(name).SubResource("status").Body(patch).Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("patch status of node %s: %w", name, rule(err, "patch", "nodes/status"))
	}
	return nil
}

// RemoveTaint removes the Node's taints of a key, whatever their values and effects. Without one it only reads.
func (c *Client) RemoveTaint(ctx context.Context, name, key string) error {
	var n corev1.Node
	if err := c.core.Get().Resource("nodes").Name(name).Do(ctx).Into(&n); err != nil {
		return fmt.Errorf("get node %s: %w", name, rule(err, "get", "nodes"))
	}
	left := slices.DeleteFunc(slices.Clone(n.Spec.Taints), func(t corev1.Taint) bool { return t.Key == key })
	if len(left) == len(n.Spec.Taints) {
		return nil
	}
	// A list is patched as a whole, so somebody else's change meanwhile has to fail this one.
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": n.ResourceVersion}, "spec": map[string]any{"taints": left}})
	if err != nil {
		return fmt.Errorf("encode taints: %w", err)
	}
	if err := c.core.Patch(types.MergePatchType).Resource("nodes").Name(name).Body(patch).Do(ctx).Error(); err != nil {
		return fmt.Errorf("remove taint %s from node %s: %w", key, name, rule(err, "patch", "nodes"))
	}
	return nil
}

// rule adds to an answer that something is forbidden how to allow it.
func rule(err error, verb, resource string) error {
	if apierrors.IsForbidden(err) {
		return fmt.Errorf("%w: add the verb %s of resource %s to the agent's ClusterRole", err, verb, resource)
	}
	return err
}

// Warn makes an Event of type Warning about a Service: kubectl describe shows it. The message is cut to what the API takes.
func (c *Client) Warn(ctx context.Context, service model.Name, node, reason, message string) error {
	var svc corev1.Service
	if err := c.core.Get().Resource("services").Namespace(service.Namespace).Name(service.Name).Do(ctx).Into(&svc); err != nil {
		return fmt.Errorf("get service %s: %w", service, rule(err, "get", "services"))
	}
	const most = 1024 // of a message, in bytes, as the API server validates it
	if len(message) > most {
		message = strings.ToValidUTF8(message[:most], "")
	}
	now := metav1.NewTime(time.Now())
	e := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: eventName(service.Name, now.Time), Namespace: service.Namespace},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: service.Namespace, Name: service.Name,
			UID: svc.UID, ResourceVersion: svc.ResourceVersion},
		Type: corev1.EventTypeWarning, Reason: reason, Message: message,
		Source: corev1.EventSource{Component: "fairlead", Host: node}, ReportingController: "fairlead", ReportingInstance: node,
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}
	if err := c.core.Post().Resource("events").Namespace(service.Namespace).Body(e).Do(ctx).Error(); err != nil {
		return fmt.Errorf("make event about service %s: %w", service, rule(err, "create", "events"))
	}
	return nil
}

// eventName names an Event as Kubernetes' own components do. It leaves the API server nothing to append: a prefix that ends in a dot is refused.
func eventName(object string, at time.Time) string {
	return fmt.Sprintf("%s.%x", strings.TrimRight(object[:min(len(object), 200)], "-."), at.UnixNano())
}
