// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package kube brings the API server's state to this node: it watches Services, EndpointSlices, Nodes and the pods of its
// own node, shrinks each object to a model value on arrival, and hands out snapshots. What nobody here reads of an object is dropped before it is decoded,
// and what is brought again as it was is not decoded at all.
//
// There is one copy of everything: the reflectors of client-go write straight into a [model.Builder], without an informer's
// cache in between. Nothing is handed out before every watch has been complete once, or before what was known earlier has to do; and a watch
// that breaks loses nothing: it goes on where it was, or lists again and only the differences are seen. What keeps the node from hearing what is
// new is named once ([Source.Troubles]) and waited out.
//
// The API servers are found without a service proxy, see servers in server.go.
//
// The way in is [New] and [Source.Run]; the way out is [Source.Snapshot].
package kube
