package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// runHooks runs a specification's hooks of one kind, in their order, up to one that
// fails. Each reads the container's state. They run where the shim does: in the host's
// namespaces; the container's network is that of the state's process.
func runHooks(ctx context.Context, kind string, hooks []specs.Hook, state specs.State) error {
	for i := range hooks {
		if err := runHook(ctx, kind, i, hooks, state); err != nil {
			return err
		}
	}
	return nil
}

// runAllHooks is runHooks for those after which nothing is undone: the others run,
// too, when one fails.
func runAllHooks(ctx context.Context, kind string, hooks []specs.Hook, state specs.State) error {
	var errs []error
	for i := range hooks {
		errs = append(errs, runHook(ctx, kind, i, hooks, state))
	}
	return errors.Join(errs...)
}

func runHook(ctx context.Context, kind string, i int, hooks []specs.Hook, state specs.State) error {
	h := hooks[i]
	b, err := json.Marshal(state)
	if err == nil {
		err = execHook(ctx, h, b)
	}
	if err != nil {
		return fmt.Errorf("%s hook %d (%s): %w", kind, i, h.Path, err)
	}
	return nil
}

func execHook(ctx context.Context, h specs.Hook, state []byte) error {
	if h.Timeout != nil && *h.Timeout > 0 {
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Env, cmd.Stdin, cmd.WaitDelay = h.Env, bytes.NewReader(state), time.Second
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(errs.String()))
	}
	return nil
}
