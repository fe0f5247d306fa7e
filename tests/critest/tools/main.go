// Command tools is the part of the stand-in images that busybox lacks: one static program that
// behaves by the name it is called.
package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	switch name := filepath.Base(os.Args[0]); name {
	case "nginx", "httpd", "hostnet-nginx":
		// The process is told apart by this title, and `pidof nginx` by the file's name.
		args := []string{"nginx: master process " + name, "80"}
		if name == "hostnet-nginx" {
			args[1] = "12003"
		}
		// A log is looked for by the server's name.
		fmt.Println(name, "serves port", args[1])
		fail(syscall.Exec("/proc/self/exe", args, os.Environ()))
	case "nonewprivs":
		fmt.Printf("Effective uid: %d\n", os.Geteuid())
	case "pgrep":
		pgrep(os.Args[len(os.Args)-1])
	case "ipcs":
		segments()
	default:
		if strings.HasPrefix(os.Args[0], "nginx: master process") {
			serve(os.Args[1])
		}
		fail(fmt.Errorf("%s is none of this program's names", name))
	}
}

// serve answers every request on the port, and says which process it is.
func serve(port string) {
	fail(os.MkdirAll("/var/run", 0o755))
	fail(os.WriteFile("/var/run/nginx.pid", []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644))
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "<title>Welcome to nginx!</title>")
	})
	fail(http.ListenAndServe(":"+port, nil))
}

// pgrep prints the processes whose name contains the text; 1 if there is none.
func pgrep(text string) {
	found := false
	entries, err := os.ReadDir("/proc")
	fail(err)
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		comm, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "comm"))
		if err == nil && strings.Contains(string(comm), text) {
			fmt.Println(pid)
			found = true
		}
	}
	if !found {
		os.Exit(1)
	}
}

// segments prints the System V shared memory of this IPC namespace.
func segments() {
	table, err := os.ReadFile("/proc/sysvipc/shm")
	fail(err)
	fmt.Println("key shmid size")
	for _, line := range strings.Split(string(table), "\n")[1:] {
		if fields := strings.Fields(line); len(fields) > 3 {
			fmt.Println(fields[0], fields[1], fields[3])
		}
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}
