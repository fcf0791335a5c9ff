package chart

import (
	"bytes"
	"encoding/xml"
	"errors"
	"image/png"
	"io"
	"strings"
	"testing"
)

// A waterfall is one file, whole in itself, with a row for each span.
func TestWaterfall(t *testing.T) {
	c := &Waterfall{Info: Info{Name: "w", Title: "GET <shop>"}, Unit: "ms", Keys: []Key{{Name: "guest", Ink: Green}, {Name: "unused", Ink: Purple}},
		Rows: []Row{{Label: "GET shop", To: 100, Ink: Grey}, {Label: "process", Depth: 1, From: 20, To: 100, Ink: Green, Tip: "a & b"}}}
	var b bytes.Buffer
	if err := File(&b, c, 600); err != nil {
		t.Fatal(err)
	}
	d := xml.NewDecoder(bytes.NewReader(b.Bytes()))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("it is no XML: %v\n%s", err, b.String())
		}
	}
	text := b.String()
	for _, want := range []string{">GET &lt;shop&gt;<", ">process<", ">guest<", "prefers-color-scheme:dark", "--c3:#009e73"} {
		if !strings.Contains(text, want) {
			t.Errorf("it has no %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "unused") {
		t.Error("its legend has what is not there")
	}
	b.Reset()
	if err := PNG(&b, c, 600); err != nil {
		t.Fatal(err)
	}
	if _, err := png.Decode(&b); err != nil {
		t.Error(err)
	}
}
