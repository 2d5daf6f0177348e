// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package meta holds the tests of the repository itself: that every package
// says what it is, that the arrows between packages keep their direction, that
// what is exported is explained, that the README's commands exist. It has no
// code of its own; a rule that people must remember is better a test.
package meta
