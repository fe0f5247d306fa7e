// Command images writes the stand-ins for the images the suite names, as one `docker save` archive.
//
//	images BUSYBOX TOOLS OUTPUT
//
// BUSYBOX is a busybox whose shell looks programs up in the PATH (Debian's `busybox`, not its
// static sibling, which would find them in itself even where a path is masked); the libraries it
// is linked with are taken from this machine. TOOLS is the program in ../tools.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

const (
	e2e     = "registry.k8s.io/e2e-test-images/"
	staging = "gcr.io/k8s-staging-cri-tools/"
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
		fail(fmt.Errorf("usage: images BUSYBOX TOOLS OUTPUT"))
	}
	busybox, tools := read(os.Args[1]), read(os.Args[2])
	out, err := os.Create(os.Args[3])
	fail(err)
	archive := tar.NewWriter(out)
	base := layer(baseFiles(os.Args[1], busybox, tools))
	write(archive, "base.tar", base)

	var manifest []map[string]any
	for i, image := range stand(tools) {
		layers := [][]byte{base}
		paths := []string{"base.tar"}
		if len(image.top) > 0 {
			layers = append(layers, layer(image.top))
			paths = append(paths, fmt.Sprintf("top-%d.tar", i))
			write(archive, paths[1], layers[1])
		}
		config := fmt.Sprintf("config-%d.json", i)
		write(archive, config, configuration(image, layers))
		manifest = append(manifest, map[string]any{"Config": config, "RepoTags": image.names, "Layers": paths})
	}
	write(archive, "manifest.json", marshal(manifest))
	fail(archive.Close())
	fail(out.Close())
}

// stand lists the images by the names and with the properties the suite relies on.
func stand(tools []byte) []image {
	program := func(path string, mode int64) []file {
		return []file{{path: path, kind: tar.TypeReg, mode: mode, body: tools}}
	}
	group := []file{{path: "etc/group", kind: tar.TypeReg, mode: 0o644, body: []byte(groups + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")},
		{path: "etc/passwd", kind: tar.TypeReg, mode: 0o644, body: []byte(users + "default-user:x:1000:1000::/home/default-user:/bin/sh\n")}}
	return []image{
		{names: []string{e2e + "busybox:1.29-2"}, command: []string{"sh"}},
		{names: []string{e2e + "nginx:1.14-2"}, command: []string{"nginx"}, top: program("usr/sbin/nginx", 0o755)},
		{names: []string{e2e + "httpd:2.4.39-4"}, command: []string{"httpd"}, top: program("usr/local/sbin/httpd", 0o755)},
		{names: []string{staging + "hostnet-nginx-" + runtime.GOARCH + ":latest"}, command: []string{"hostnet-nginx"}, top: program("usr/sbin/hostnet-nginx", 0o755)},
		{names: []string{e2e + "nonewprivs:1.3"}, command: []string{"/nonewprivs"}, top: program("nonewprivs", 0o4755)},
		{names: []string{staging + "test-image-predefined-group:latest"}, command: []string{"sh"}, user: "default-user", top: group},
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

func configuration(image image, layers [][]byte) []byte {
	var ids []string
	for _, layer := range layers {
		ids = append(ids, fmt.Sprintf("sha256:%x", sha256.Sum256(layer)))
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

func write(archive *tar.Writer, name string, body []byte) {
	fail(archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body)), ModTime: time.Unix(0, 0)}))
	_, err := archive.Write(body)
	fail(err)
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
