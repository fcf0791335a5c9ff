package config

import (
	"bytes"
	"fmt"
	"strings"
)

// width is that of a comment's lines in a configuration file.
const width = 88

// TOML returns the setting in c as the file has it.
func (k Key) TOML(c Config) string {
	switch p := k.field(&c).(type) {
	case *[]string:
		quoted := make([]string, len(*p))
		for i, s := range *p {
			quoted[i] = fmt.Sprintf("%q", s)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	case *int, *bool:
		return fmt.Sprint(k.Value(c))
	}
	return fmt.Sprintf("%q", fmt.Sprint(k.Value(c)))
}

// Text is a configuration file with these settings, each below what it means. What
// is a default is there as a comment, and not in force: a later version of skep may
// have a better one.
func (r Result) Text() []byte {
	var b bytes.Buffer
	b.WriteString("# Settings of skep, in TOML. Lines that are comments show the defaults. A flag, or\n" +
		"# SKEP_… in the environment, goes over what is here; `skep config` shows what is in\n" +
		"# force and why. The daemon reads this when it starts.\n")
	for _, k := range Keys {
		b.WriteString("\n" + comment(k.Help))
		if r.From[k.Name] == "default" {
			fmt.Fprintf(&b, "#%s = %s\n", k.Name, k.TOML(Default()))
		} else {
			fmt.Fprintf(&b, "%s = %s\n", k.Name, k.TOML(r.Config))
		}
	}
	return b.Bytes()
}

// comment breaks a text into lines of a comment.
func comment(text string) string {
	var b strings.Builder
	line := "#"
	for _, word := range strings.Fields(text) {
		if len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = "#"
		}
		line += " " + word
	}
	return b.String() + line + "\n"
}
