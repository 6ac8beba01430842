package main

import (
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// executions is how often a process of TestWhoExecutesLives still executes its binary; a step of that, instead of tests.
const executions = "UNKAI_TEST_EXECUTIONS"

func executeAgain() {
	left, err := strconv.Atoi(os.Getenv(executions))
	if err != nil || left == 0 {
		os.Exit(0)
	}
	for range 20 { // threads, which all have to end first
		go func() {
			for {
				time.Sleep(time.Millisecond)
				syscall.Getpid()
			}
		}()
	}
	done := make(chan struct{})
	go func() { // hardly ever the first thread
		defer close(done)
		time.Sleep(2 * time.Millisecond)
		os.Setenv(executions, strconv.Itoa(left-1))
		syscall.Exec(os.Args[0], os.Args, os.Environ())
	}()
	<-done
	os.Exit(1)
}

// A process that executes another binary is never taken for one that has ended, whenever one looks; one that has ended is.
func TestWhoExecutesLives(t *testing.T) {
	t.Parallel()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), executions+"=60")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ticks, _, err := lifeOf(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	ended, between := time.Time{}, 0
	for deadline := time.Now().Add(time.Minute); ; {
		_, state, _ := lifeOf(c.Process.Pid)
		if lives(c.Process.Pid, ticks) {
			if !ended.IsZero() {
				t.Fatal("it was taken for one that has ended")
			}
			if state == 'Z' {
				between++
			}
		} else if ended.IsZero() {
			ended = time.Now()
		} else if time.Since(ended) > 200*time.Millisecond {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not end")
		}
	}
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("its first thread was seen ended %d times", between)
	if lives(c.Process.Pid, ticks) {
		t.Error("it is gone, and lives")
	}
}
