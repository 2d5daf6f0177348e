// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package pki is the certificate authority of a standalone cluster: one
// directory with the authority, the API server's certificate and a certificate
// per client.
//
// The way in is [Ensure], which makes what is missing and renews what is about
// to expire, and leaves everything else as it is; it may be called by several
// processes at once, and after a crash at any moment. Clients get theirs from
// [PKI.Client], and a kubeconfig from [WriteKubeconfig].
//
// Keys are ECDSA P-256 and readable by their owner only. The authority lasts
// ten years and is renewed with its old key, so that what it signed stays
// valid. Renewal happens in Ensure and Client alone: a process that runs for
// years without calling them keeps what it has.
package pki
