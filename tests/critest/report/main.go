// Command report sums JSON reports of the suite up: what failed, what skipped itself and why, and
// how many of each. Specs outside the focus do not count.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeType            string
	LeafNodeText            string
	State                   string
	RunTime                 int64
	Failure                 struct{ Message string }
}

type suite struct {
	SpecReports []spec
}

func main() {
	var specs []spec
	for _, path := range os.Args[1:] {
		body, err := os.ReadFile(path)
		fail(err)
		var suites []suite
		fail(json.Unmarshal(body, &suites))
		specs = append(specs, suites[0].SpecReports...)
	}

	passed, failed, skipped := 0, 0, 0
	for _, spec := range specs {
		name := strings.TrimPrefix(strings.Join(append(spec.ContainerHierarchyTexts, spec.LeafNodeText), " "), "[k8s.io] ")
		switch {
		case spec.State == "passed":
			if spec.LeafNodeType == "It" {
				passed++
			}
		case spec.State == "skipped" && spec.Failure.Message == "":
		case spec.State == "skipped":
			skipped++
			fmt.Printf("skipped: %s: %s\n", name, spec.Failure.Message)
		default:
			failed++
			fmt.Printf("%s: %s: %.300s\n", spec.State, name, spec.Failure.Message)
		}
	}
	fmt.Printf("critest: %d passed, %d failed, %d skipped\n", passed, failed, skipped)
	if failed > 0 || passed == 0 {
		os.Exit(1)
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(2)
	}
}
