// Command images writes the stand-ins for the images the suite names, as the storage directory of a
// registry that serves them all, whatever registry their names begin with.
//
//	images BUSYBOX TOOLS DIRECTORY
//
// BUSYBOX is a busybox whose shell looks programs up in the PATH (Debian's `busybox`, not its
// static sibling, which would find them in itself even where a path is masked); the libraries it
// is linked with are taken from this machine. TOOLS is the program in ../tools.
//
// What it prints is the digest of test-image-digest's manifest: the suite knows that of the image it
// stands for, and has to be told.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

const (
	e2e     = "registry.k8s.io/e2e-test-images/"
	staging = "gcr.io/k8s-staging-cri-tools/"
	// The image that is asked for by its digest.
	digested = staging + "test-image-digest:latest"
)

// image is one stand-in: what is on top of the base, and its configuration.
type image struct {
	names   []string
	user    string
	command []string
	top     []file
}

// file is an entry of a layer.
type file struct {
	path, target string // target: of a link
	kind         byte
	mode         int64
	uid          int
	body         []byte
}

func main() {
	if len(os.Args) != 4 {
		fail(fmt.Errorf("usage: images BUSYBOX TOOLS DIRECTORY"))
	}
	busybox, tools := read(os.Args[1]), read(os.Args[2])
	registry := registry{filepath.Join(os.Args[3], "docker/registry/v2")}
	base := compress(layer(baseFiles(os.Args[1], busybox, tools)))

	for _, image := range stand(tools) {
		layers := []blob{base}
		if len(image.top) > 0 {
			layers = append(layers, compress(layer(image.top)))
		}
		digest := registry.push(image, layers)
		if image.names[0] == digested {
			fmt.Println(digest)
		}
	}
}

// registry is the directory of a registry with the `filesystem` driver.
type registry struct{ root string }

// blob is a layer as it is stored and the digest of what it unpacks to.
type blob struct {
	body   []byte
	diffID string
}

// push stores an image under all its names and returns its manifest's digest.
func (r registry) push(image image, layers []blob) string {
	config := configuration(image, layers)
	descriptors := make([]map[string]any, 0, len(layers))
	for _, layer := range layers {
		descriptors = append(descriptors, descriptor("application/vnd.oci.image.layer.v1.tar+gzip", layer.body))
	}
	manifest := marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     "application/vnd.oci.image.manifest.v1+json",
		"config":        descriptor("application/vnd.oci.image.config.v1+json", config),
		"layers":        descriptors,
	})
	digest := digest(manifest)
	for _, name := range image.names {
		_, rest, _ := strings.Cut(name, "/")
		repository, tag, _ := strings.Cut(rest, ":")
		home := filepath.Join(r.root, "repositories", repository)
		for _, layer := range layers {
			r.link(filepath.Join(home, "_layers"), r.store(layer.body))
		}
		r.link(filepath.Join(home, "_layers"), r.store(config))
		r.link(filepath.Join(home, "_manifests/revisions"), r.store(manifest))
		tagged := filepath.Join(home, "_manifests/tags", tag)
		r.link(filepath.Join(tagged, "index"), digest)
		put(filepath.Join(tagged, "current/link"), []byte(digest))
	}
	return digest
}

// store keeps a blob once, whoever refers to it.
func (r registry) store(body []byte) string {
	digest := digest(body)
	hex := strings.TrimPrefix(digest, "sha256:")
	put(filepath.Join(r.root, "blobs/sha256", hex[:2], hex, "data"), body)
	return digest
}

// link makes a blob known below a folder.
func (r registry) link(folder, digest string) {
	put(filepath.Join(folder, "sha256", strings.TrimPrefix(digest, "sha256:"), "link"), []byte(digest))
}

func descriptor(mediaType string, body []byte) map[string]any {
	return map[string]any{"mediaType": mediaType, "digest": digest(body), "size": len(body)}
}

func digest(body []byte) string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256(body))
}

func compress(body []byte) blob {
	var buffer bytes.Buffer
	w, err := gzip.NewWriterLevel(&buffer, gzip.BestSpeed)
	fail(err)
	_, err = w.Write(body)
	fail(err)
	fail(w.Close())
	return blob{buffer.Bytes(), digest(body)}
}

// stand lists the images by the names and with the properties the suite relies on.
func stand(tools []byte) []image {
	program := func(path string, mode int64) []file {
		return []file{{path: path, kind: tar.TypeReg, mode: mode, body: tools}}
	}
	group := []file{{path: "etc/group", kind: tar.TypeReg, mode: 0o644, body: []byte(groups + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")},
		{path: "etc/passwd", kind: tar.TypeReg, mode: 0o644, body: []byte(users + "default-user:x:1000:1000::/home/default-user:/bin/sh\n")}}
	mark := func(name string) []file {
		return []file{{path: "marks-" + name, kind: tar.TypeReg, mode: 0o644, body: []byte(name + "\n")}}
	}
	// marked is an image unlike all others.
	marked := func(name string, names ...string) image {
		return image{names: names, command: []string{"sh"}, top: mark(name)}
	}
	return []image{
		{names: []string{e2e + "busybox:1.29-2"}, command: []string{"sh"}},
		{names: []string{e2e + "nginx:1.14-2"}, command: []string{"nginx"}, top: program("usr/sbin/nginx", 0o755)},
		{names: []string{e2e + "httpd:2.4.39-4"}, command: []string{"httpd"}, top: program("usr/local/sbin/httpd", 0o755)},
		{names: []string{staging + "hostnet-nginx-" + runtime.GOARCH + ":latest"}, command: []string{"hostnet-nginx"}, top: program("usr/sbin/hostnet-nginx", 0o755)},
		{names: []string{e2e + "nonewprivs:1.3"}, command: []string{"/nonewprivs"}, top: program("nonewprivs", 0o4755)},
		{names: []string{staging + "test-image-predefined-group:latest"}, command: []string{"sh"}, user: "default-user", top: group},
		{names: []string{staging + "test-image-user-uid:latest"}, command: []string{"sh"}, user: "1002"},
		{names: []string{staging + "test-image-user-username:latest"}, command: []string{"sh"}, user: "www-data"},
		{names: []string{staging + "test-image-user-uid-group:latest"}, command: []string{"sh"}, user: "1003:www-data"},
		{names: []string{staging + "test-image-user-username-group:latest"}, command: []string{"sh"}, user: "www-data:nogroup"},
		marked("1", staging+"test-image-1:latest"),
		marked("2", staging+"test-image-2:latest"),
		marked("3", staging+"test-image-3:latest"),
		marked("tags", staging+"test-image-tags:1", staging+"test-image-tags:2", staging+"test-image-tags:3"),
		marked("latest", staging+"test-image-latest:latest"),
		marked("digest", digested),
		marked("tag", staging+"test-image-tag:test"),
		marked("all", staging+"test-image-tag:all"),
		// Named by way of two registries.
		marked("pause", "registry.k8s.io/pause:3.9"),
	}
}

const (
	users  = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/false\nnobody:x:65534:65534::/home:/bin/false\n"
	groups = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"
)

// baseFiles is the file tree under all of them.
func baseFiles(busyboxPath string, busybox, tools []byte) []file {
	var files []file
	for _, dir := range []string{"bin", "dev", "etc", "home", "lib", "proc", "root", "sys", "usr", "usr/bin", "usr/sbin", "usr/local", "usr/local/sbin", "var", "var/run", "mnt"} {
		files = append(files, file{path: dir, kind: tar.TypeDir, mode: 0o755})
	}
	files = append(files,
		file{path: "tmp", kind: tar.TypeDir, mode: 0o1777},
		file{path: "etc/passwd", kind: tar.TypeReg, mode: 0o644, body: []byte(users)},
		file{path: "etc/group", kind: tar.TypeReg, mode: 0o644, body: []byte(groups)},
		file{path: "bin/busybox", kind: tar.TypeReg, mode: 0o755, body: busybox},
		file{path: "usr/bin/pgrep", kind: tar.TypeReg, mode: 0o755, body: tools},
		file{path: "usr/bin/ipcs", kind: tar.TypeLink, mode: 0o755, target: "usr/bin/pgrep"})
	applets, err := exec.Command(busyboxPath, "--list").Output()
	fail(err)
	for _, applet := range strings.Fields(string(applets)) {
		// A hard link each, not a symlink: masking one must not mask all.
		if applet != "busybox" && applet != "httpd" {
			files = append(files, file{path: "bin/" + applet, kind: tar.TypeLink, mode: 0o755, target: "bin/busybox"})
		}
	}
	return append(files, libraries(busyboxPath)...)
}

// libraries are the shared objects of the program, under the paths it looks for them.
func libraries(program string) []file {
	out, err := exec.Command("ldd", program).Output()
	fail(err)
	var files []file
	seen := map[string]bool{}
	for _, word := range strings.Fields(string(out)) {
		if !strings.HasPrefix(word, "/") {
			continue
		}
		parts := strings.Split(strings.TrimPrefix(word, "/"), "/")
		for i := 1; i < len(parts); i++ {
			if dir := strings.Join(parts[:i], "/"); !seen[dir] && dir != "lib" {
				seen[dir] = true
				files = append(files, file{path: dir, kind: tar.TypeDir, mode: 0o755})
			}
		}
		files = append(files, file{path: strings.Join(parts, "/"), kind: tar.TypeReg, mode: 0o755, body: read(word)})
	}
	return files
}

func layer(files []file) []byte {
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for _, f := range files {
		fail(w.WriteHeader(&tar.Header{Typeflag: f.kind, Name: f.path, Linkname: f.target, Mode: f.mode, Uid: f.uid, Gid: f.uid, Size: int64(len(f.body)), ModTime: time.Unix(0, 0)}))
		_, err := w.Write(f.body)
		fail(err)
	}
	fail(w.Close())
	return buffer.Bytes()
}

func configuration(image image, layers []blob) []byte {
	var ids []string
	for _, layer := range layers {
		ids = append(ids, layer.diffID)
	}
	return marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"created":      time.Unix(0, 0).UTC(),
		"config": map[string]any{
			"Env":  []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			"Cmd":  image.command,
			"User": image.user,
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids},
	})
}

func put(path string, body []byte) {
	fail(os.MkdirAll(filepath.Dir(path), 0o755))
	fail(os.WriteFile(path, body, 0o644))
}

func read(path string) []byte {
	body, err := os.ReadFile(path)
	fail(err)
	return body
}

func marshal(value any) []byte {
	body, err := json.Marshal(value)
	fail(err)
	return body
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}
