// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

// The election of a single member is a formality that takes one to two
// election timeouts, so a short timeout is a short start. A tick costs a
// wake-up, so it is not shorter than this.
const (
	etcdTick     = 50 * time.Millisecond
	etcdElection = 250 * time.Millisecond
)

// etcdQuota is how large the database may grow, in bytes. It is mapped, not
// allocated.
const etcdQuota = 2 << 30

// etcd is the database of the API, in this process. It listens on a unix
// socket in its directory, which only the user of this process can reach.
type etcd struct {
	server *embed.Etcd
	// dir and lock stay open as long as the server runs.
	dir, lock *os.File
	endpoint  string
	level     zap.AtomicLevel
}

// startEtcd opens the database in dir and waits until it answers. It fails at
// once if another process has it open.
func startEtcd(ctx context.Context, dir string) (_ *etcd, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create etcd directory: %w", err)
	}
	e := &etcd{level: zap.NewAtomicLevelAt(zapcore.ErrorLevel)}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if e.lock, err = lockFile(filepath.Join(dir, "lock")); err != nil {
		return nil, err
	}
	if e.dir, err = os.Open(dir); err != nil {
		return nil, fmt.Errorf("open etcd directory: %w", err)
	}
	config := e.config(dir)
	if e.server, err = embed.StartEtcd(config); err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	select {
	case <-e.server.Server.ReadyNotify():
		return e, nil
	case err := <-e.server.Err():
		return nil, fmt.Errorf("start etcd: %w", err)
	case <-ctx.Done():
		return nil, fmt.Errorf("start etcd: %w", context.Cause(ctx))
	}
}

// config is etcd's configuration: one member, no network, synced to disk.
func (e *etcd) config(dir string) *embed.Config {
	// The name of a unix socket may have 107 bytes and a state directory any
	// number, so the sockets are named through the open directory.
	socket := func(name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", e.dir.Fd(), name) }
	client := []url.URL{{Scheme: "unix", Path: socket("client.sock")}}
	c := embed.NewConfig()
	c.Name = "fairlead"
	c.Dir = dir
	c.ListenClientUrls, c.AdvertiseClientUrls = client, client
	// For peers, etcd takes the socket's name from the host of the URL; were
	// it empty, any process could connect.
	c.ListenPeerUrls = []url.URL{{Scheme: "unix", Host: socket("peer.sock")}}
	c.AdvertisePeerUrls = []url.URL{{Scheme: "unix", Path: socket("peer.sock")}}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.TickMs, c.ElectionMs = uint(etcdTick.Milliseconds()), uint(etcdElection.Milliseconds())
	c.QuotaBackendBytes = etcdQuota
	// The API server compacts the history itself, every few minutes. What
	// is kept in memory beyond that is raft's log, for members that lag;
	// there are none.
	c.SnapshotCount = 5000
	c.SnapshotCatchUpEntries = 100
	c.MaxSnapFiles, c.MaxWalFiles = 2, 2
	c.EnableGRPCGateway = false
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(e.logger())
	e.endpoint = client[0].String()
	return c
}

// logger sends etcd's errors to the standard error.
func (e *etcd) logger() *zap.Logger {
	encoding := zap.NewProductionEncoderConfig()
	encoding.EncodeTime = zapcore.RFC3339TimeEncoder
	core := zapcore.NewCore(zapcore.NewConsoleEncoder(encoding), zapcore.Lock(os.Stderr), e.level)
	return zap.New(chattyCore{core}).Named("etcd")
}

// chattyCore leaves out an error that is none: every new database fails to
// tell its own version until it has a little history.
type chattyCore struct{ zapcore.Core }

// Check decides whether an entry is written.
func (c chattyCore) Check(entry zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if entry.Message == "failed to update storage version" {
		return to
	}
	return c.Core.Check(entry, to)
}

// With adds fields to every entry.
func (c chattyCore) With(fields []zapcore.Field) zapcore.Core { return chattyCore{c.Core.With(fields)} }

// close stops the server and gives up the directory.
func (e *etcd) close() {
	if e.server != nil {
		// That its listeners are closed is not an error now.
		e.level.SetLevel(zapcore.FatalLevel)
		e.server.Close()
	}
	for _, file := range []*os.File{e.dir, e.lock} {
		if file != nil {
			file.Close()
		}
	}
}

// lockFile locks the file at path for as long as the result is open.
func lockFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return file, nil
	}
	file.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w: %s", ErrInUse, filepath.Dir(path))
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}
