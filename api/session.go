package api

import (
	"context"
	"time"
)

// Ticket lets one browser in, once.
type Ticket struct {
	Ticket  string    `json:"ticket"`
	Address string    `json:"address,omitempty"` // where the daemon serves the page; empty: nowhere but through `skep dashboard`
	Expires time.Time `json:"expires"`
}

// Session is what a ticket becomes: a token that is good as the control API's own.
type Session struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// TicketRequest has a ticket become a session.
type TicketRequest struct {
	Ticket string `json:"ticket"`
}

// Ticket asks for a ticket, with which a browser is let in.
func (c *Client) Ticket(ctx context.Context) (t Ticket, err error) {
	return t, c.call(ctx, "POST", "/v1/sessions", nil, &t)
}

// Usage is what a node and its instances use.
type Usage struct {
	MemoryBytes    int64           `json:"memory_bytes"`    // of the host
	AvailableBytes int64           `json:"available_bytes"` // of those
	Waiting        map[string]int  `json:"waiting"`         // requests that wait for an instance, by function
	Instances      []InstanceUsage `json:"instances"`
}

// InstanceUsage is what an instance's VMM uses, with its guest's memory.
type InstanceUsage struct {
	ID            string `json:"id"`
	Function      string `json:"function"`
	ResidentBytes int64  `json:"resident_bytes"`
}

// Usage asks what the node and its instances use.
func (c *Client) Usage(ctx context.Context) (u Usage, err error) {
	return u, c.call(ctx, "GET", "/v1/usage", nil, &u)
}
