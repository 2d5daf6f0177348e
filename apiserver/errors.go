// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import "errors"

// ErrInUse says that another API server runs on the state directory.
var ErrInUse = errors.New("state directory is in use by another API server")
