package main

import (
	"errors"

	"github.com/spf13/cobra"
)

var errNotBuilt = errors.New("not built in yet")

func (c *cli) benchGatewayCmd() *cobra.Command {
	return &cobra.Command{Use: "gateway", Short: "measure the gateway alone", RunE: func(*cobra.Command, []string) error { return errNotBuilt }}
}
