// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// DefaultDir is the state directory when the user names none.
const DefaultDir = "/var/lib/fairlead"

// Errors that callers tell apart.
var (
	// ErrRunning means that a supervisor holds the state directory's lock.
	ErrRunning = errors.New("a cluster already runs from this state directory")
	// ErrNoCluster means that the state directory does not exist or was not made by fairlead up.
	ErrNoCluster = errors.New("no cluster in this state directory")
	// ErrNotRunning means that no supervisor answers on the control socket.
	ErrNotRunning = errors.New("no cluster runs from this state directory")
)

// Dir is the absolute path of a state directory. Its methods name what is in it; none of them touches the disk unless it says so.
type Dir string

// Open returns the state directory at path, which need not exist yet. The path is made absolute and its symbolic links are
// followed as far as it exists, so that one directory has one name (and one control group) whichever way it is spelt.
func Open(path string) (Dir, error) {
	if path == "" { // a variable that is not set, and not the directory that somebody happens to be in
		return "", errors.New("open state directory: its path is empty")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("open state directory: %w", err)
	}
	rest := ""
	for existing := abs; ; existing = filepath.Dir(existing) {
		if real, err := filepath.EvalSymlinks(existing); err == nil {
			return Dir(filepath.Join(real, rest)), nil
		}
		if existing == filepath.Dir(existing) {
			return Dir(abs), nil
		}
		rest = filepath.Join(filepath.Base(existing), rest)
	}
}

// Path joins names below the state directory.
func (d Dir) Path(names ...string) string {
	return filepath.Join(append([]string{string(d)}, names...)...)
}

// LockPath is the file whose flock the supervisor holds while it runs.
func (d Dir) LockPath() string { return d.Path("lock") }

// RecordPath is the file that holds the [Record].
func (d Dir) RecordPath() string { return d.Path("cluster.json") }

// Kubeconfig is the administrator's kubeconfig, which works from the machine itself.
func (d Dir) Kubeconfig() string { return d.Path("kubeconfig") }

// PKI is the directory of keys and certificates.
func (d Dir) PKI() string { return d.Path("pki") }

// Etcd is the directory of the embedded etcd's data.
func (d Dir) Etcd() string { return d.Path("etcd") }

// Log is the log file of one of the cluster's own processes: "cluster", "apiserver", "agent-n1".
func (d Dir) Log(process string) string { return d.Path("logs", process+".log") }

// Socket is the supervisor's control socket.
func (d Dir) Socket() string { return d.Path("run", "cluster.sock") }

// Netns is the directory of network namespace mounts. It has entries only inside the supervisor's mount namespace.
func (d Dir) Netns() string { return d.Path("netns") }

// NodeNetns is the mount of a node's network namespace inside the supervisor's mount namespace.
func (d Dir) NodeNetns(node string) string { return d.Path("netns", node) }

// PodNetns is the mount of a pod's network namespace inside the supervisor's mount namespace.
func (d Dir) PodNetns(uid string) string { return d.Path("netns", "pod-"+uid) }

// Node is the directory of one node.
func (d Dir) Node(node string) NodeDir { return NodeDir(d.Path("nodes", node)) }

// ControlGroupName is the name of the cluster's control group below the mount of the cgroup v2 hierarchy.
func (d Dir) ControlGroupName() string {
	sum := sha256.Sum256([]byte(d))
	return "fairlead-" + hex.EncodeToString(sum[:4])
}

// NodeDir is the directory of one node below the state directory; all that a node's processes write is in it.
type NodeDir string

// Kubeconfig is the kubeconfig of the node's agent.
func (n NodeDir) Kubeconfig() string { return filepath.Join(string(n), "kubeconfig") }

// AgentSocket is where the node's agent answers HTTP.
func (n NodeDir) AgentSocket() string { return filepath.Join(string(n), "agent.sock") }

// CNIConfDir is where the agent writes the CNI configuration when the node can carry pods.
func (n NodeDir) CNIConfDir() string { return filepath.Join(string(n), "cni", "net.d") }

// CNICacheDir is where the runtime keeps the results of CNI ADD.
func (n NodeDir) CNICacheDir() string { return filepath.Join(string(n), "cni", "cache") }

// IPAM is the CNI plugin's data directory.
func (n NodeDir) IPAM() string { return filepath.Join(string(n), "ipam") }

// Pods is the directory of the node's pods.
func (n NodeDir) Pods() string { return filepath.Join(string(n), "pods") }

// Pod is the directory of one pod: its files and its containers' logs.
func (n NodeDir) Pod(uid string) string { return filepath.Join(string(n), "pods", uid) }

// Make creates the state directory and the directories in it that must exist before the supervisor starts. It returns whether the
// state directory itself is new.
func (d Dir) Make() (created bool, err error) {
	if _, err := os.Stat(string(d)); errors.Is(err, fs.ErrNotExist) {
		created = true
	}
	for _, dir := range []string{d.Path(), d.PKI(), d.Path("logs"), d.Path("run"), d.Netns(), d.Path("nodes")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return created, fmt.Errorf("make state directory: %w", err)
		}
	}
	return created, nil
}

// Record is what cluster.json holds: the parameters, and what is needed to find and remove the cluster's processes.
type Record struct {
	// Params are the parameters that the cluster was made with.
	Params Params `json:"params"`
	// ControlGroup is the absolute path of the control group that all processes of the cluster are in.
	ControlGroup string `json:"controlGroup"`
	// Supervisor is the supervisor's process id as of its last start. It says nothing about whether it still runs; the lock does.
	Supervisor int `json:"supervisor,omitempty"`
	// Started is when the supervisor was last started.
	Started time.Time `json:"started,omitzero"`
}

// ReadRecord reads cluster.json from the disk. The error is [ErrNoCluster] when there is none.
func (d Dir) ReadRecord() (Record, error) {
	var r Record
	b, err := os.ReadFile(d.RecordPath())
	if errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("%w: %s", ErrNoCluster, d)
	}
	if err != nil {
		return r, fmt.Errorf("read record: %w", err)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read record %s: %w", d.RecordPath(), err)
	}
	return r, nil
}

// WriteRecord replaces cluster.json in one step, so that a reader never sees half of it.
func (d Dir) WriteRecord(r Record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return WriteFile(d.RecordPath(), append(b, '\n'), 0o600)
}

// WriteFile writes a file beside its final place and renames it over, so that it is there whole or not at all.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Lock takes the state directory's lock without waiting. The lock lives as long as any copy of the returned file is open, in this or
// in a child process, and ends by itself with the last of them. The error is [ErrRunning] when another process holds it and
// [ErrNoCluster] when the directory does not exist.
func (d Dir) Lock() (*os.File, error) {
	f, err := os.OpenFile(d.LockPath(), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoCluster, d)
	}
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrRunning
		}
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	return f, nil
}

// nodeAgent is the directory of an agent that is none of the cluster's: a node's own, by default below [DefaultDir], with its pods' address leases.
const nodeAgent = "agent"

// Purge removes the state directory and all that is in it, but for the state of an agent of the node itself. It refuses a directory that has no
// cluster.json, so that a wrong --state cannot cost anybody their files. The caller holds the lock.
func (d Dir) Purge() error {
	if _, err := os.Stat(d.RecordPath()); err != nil {
		return fmt.Errorf("%w: %s has no cluster.json; not removing it", ErrNoCluster, d)
	}
	// The record goes last: a removal that was cut short can be asked for again. So does the lock: who waits for it must not get another one meanwhile.
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return fmt.Errorf("purge state directory: %w", err)
	}
	keep := false
	for _, e := range entries {
		p := d.Path(e.Name())
		if e.Name() == nodeAgent {
			keep = true
		} else if p != d.RecordPath() && p != d.LockPath() {
			if err := os.RemoveAll(p); err != nil {
				return fmt.Errorf("purge state directory: %w", err)
			}
		}
	}
	if keep {
		err = errors.Join(os.RemoveAll(d.LockPath()), os.RemoveAll(d.RecordPath()))
	} else if err = os.RemoveAll(string(d)); errors.Is(err, syscall.ENOTEMPTY) {
		err = os.RemoveAll(string(d)) // somebody who waits for the lock has just made it anew
	}
	if err != nil {
		return fmt.Errorf("purge state directory: %w", err)
	}
	return nil
}
