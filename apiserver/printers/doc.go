// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package printers makes the tables that kubectl get shows, with the columns
// that Kubernetes has; those of a wide table have priority 1.
//
// The way in is [For]. Cells are made of the object alone, and of the clock
// for ages; the library puts the object itself into the row as the client
// asks for it.
package printers
