// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"strings"

	"github.com/fairlead/fairlead/config"
)

// proxyHandler serves what kube-proxy serves at its metrics address: tools look there for what carries the node's Services, and how it is set.
func proxyHandler(cfg *config.Agent, metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /proxyMode", text("nftables"))
	mux.HandleFunc("GET /healthz", text("ok"))
	mux.HandleFunc("GET /configz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(configz(cfg))
	})
	return mux
}

// joined are ranges as kube-proxy writes them in one text.
func joined(ranges []netip.Prefix) string {
	var all []string
	for _, r := range ranges {
		all = append(all, r.String())
	}
	return strings.Join(all, ",")
}

func text(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = io.WriteString(w, s)
	}
}

// configz is the configuration that is in force: every flag, and under kube-proxy's group those fields of its KubeProxyConfiguration (v1alpha1) that have
// a meaning here, with that meaning.
func configz(cfg *config.Agent) map[string]any {
	c := cfg.Conntrack
	return map[string]any{
		"fairlead": cfg.Flags,
		"kubeproxy.config.k8s.io": map[string]any{
			"apiVersion":         "kubeproxy.config.k8s.io/v1alpha1",
			"kind":               "KubeProxyConfiguration",
			"mode":               "nftables",
			"hostnameOverride":   cfg.Node,
			"healthzBindAddress": cfg.Healthz,
			"metricsBindAddress": cfg.Metrics,
			"nodePortAddresses":  cfg.NodePortAddrs,
			"clusterCIDR":        joined(cfg.PodCIDRs),
			"conntrack": map[string]any{
				"maxPerCore": c.MaxPerCore, "min": c.Min, "tcpBeLiberal": c.Liberal,
				"tcpEstablishedTimeout": c.Established.String(), "tcpCloseWaitTimeout": c.CloseWait.String(),
				"udpTimeout": c.UDP.String(), "udpStreamTimeout": c.UDPStream.String(),
			},
		},
	}
}
