package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
)

var errNotBuilt = errors.New("not built in yet")

func (c *cli) localImage(_ context.Context, ref string) (string, error) { return absolute(ref) }
func (c *cli) doctorCmd() *cobra.Command {
	return &cobra.Command{Use: "doctor", Short: "report what this host can do, and how to mend what it can't", RunE: func(*cobra.Command, []string) error { return errNotBuilt }}
}
func (c *cli) benchGatewayCmd() *cobra.Command {
	return &cobra.Command{Use: "gateway", Short: "measure the gateway alone", RunE: func(*cobra.Command, []string) error { return errNotBuilt }}
}
