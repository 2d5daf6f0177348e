// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package metrics counts what the service proxy of a node does, for Prometheus, under kube-proxy's names where the meaning is the same.
//
// "Same" below is against kube-proxy v1.37 in nftables mode; every name, type, label and bucket of those is as there, so that dashboards
// and alerts go on working. Label ip_family is IPv4 or IPv6; a round programs both families in one go, and is observed in both. What has
// no counterpart here (cleaning up stale chains, anything of iptables) is not exported.
//
//	kubeproxy_sync_proxy_rules_duration_seconds                same: one round, until the kernel has acknowledged it
//	kubeproxy_sync_full_proxy_rules_duration_seconds           same: rounds that read back and compare everything
//	kubeproxy_sync_partial_proxy_rules_duration_seconds        same: rounds that write what changed
//	kubeproxy_sync_proxy_rules_last_timestamp_seconds          same: when a round last succeeded
//	kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds   same: when a round was last asked for
//	kubeproxy_sync_proxy_rules_nftables_sync_failures_total    same: rounds that failed
//	kubeproxy_network_programming_duration_seconds             same: from the endpoint's change to the kernel's acknowledgement
//	kubeproxy_sync_proxy_rules_endpoint_changes_total          same: EndpointSlice events
//	kubeproxy_sync_proxy_rules_endpoint_changes_pending        nearly: falls when the kernel has the change, there when a round takes it up
//	kubeproxy_sync_proxy_rules_service_changes_total           nearly: Service events, which a dual-stack kube-proxy counts once a family
//	kubeproxy_sync_proxy_rules_service_changes_pending         nearly: the same, and counts events where kube-proxy counts Services
//	kubeproxy_sync_proxy_rules_no_local_endpoints_total        same: a gauge, whatever its name says, by traffic_policy internal or external
//	kubeproxy_conntrack_reconciler_sync_duration_seconds       same: one pass over the UDP flows
//	kubeproxy_conntrack_reconciler_deleted_entries_total       same: flows removed because they led to no endpoint any more
//	kubeproxy_proxy_healthz_total                              same: answers of /healthz by code
//	kubeproxy_proxy_livez_total                                same: answers of /livez by code
//	fairlead_quarantined_services                              own: Services that cannot be programmed, while all others are
//	fairlead_dataplane_services                                own: frontends (address, protocol, port) in the kernel
//	fairlead_dataplane_endpoints                               own: where those lead, summed up
//	fairlead_dataplane_transactions_total                      own: transactions that the kernel accepted
//	fairlead_dataplane_elements_total                          own: map elements written, added and deleted ones
//	fairlead_dataplane_drift_total                             own: times that another program's change was found and mended
//	fairlead_dropped_packets_total                             own: packets that the rules dropped, by reason
//	fairlead_checkpoint_timestamp_seconds                      own: when the state on disk was written
//	fairlead_checkpoint_size_bytes                             own: its size
//	fairlead_checkpoint_writes_total                           own: writes of it
//	fairlead_checkpoint_write_failures_total                   own: those that failed
//	fairlead_pod_fast_path_answers_total                       own: questions answered in the kernel ([github.com/fairlead/fairlead/fastpath])
//	fairlead_pod_fast_path_packets_total                       own: packets past netfilter ([github.com/fairlead/fairlead/fastpath])
//	fairlead_socket_lb_connections_total                       own: connections led to an endpoint when made ([github.com/fairlead/fairlead/socketlb])
//
// The invariant: nothing is waited for on the way of a change; each call is one or two atomic operations, and what others count already is
// asked for when a scrape comes.
//
// The way in is [New], the methods of [Proxy] from the loop, and [Proxy.Collectors].
package metrics
