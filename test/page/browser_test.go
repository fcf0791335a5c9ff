// Package page has the tests of the page in a real browser, Chromium, without a screen.
// It is a module of its own, for what drives the browser.
package page

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/skep-dev/skep/internal/testenv"
)

// Environment variables of the tests.
const (
	chromiumEnv    = "SKEP_CHROMIUM"    // the browser's program
	axeEnv         = "SKEP_AXE"         // axe-core's axe.min.js
	screenshotsEnv = "SKEP_SCREENSHOTS" // a directory, to look at what was seen
)

// browser is one tab.
type browser struct {
	t   *testing.T
	ctx context.Context
}

// open starts a browser. What goes wrong in its pages fails the test, and so does a
// request to another host than the page's.
func open(t *testing.T) *browser {
	t.Helper()
	program, err := exec.LookPath(cmp.Or(os.Getenv(chromiumEnv), "chromium"))
	testenv.NeedThat(t, "chromium", err, "apt-get install chromium, or set "+chromiumEnv)
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Limit(t, 4*time.Minute))
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()), chromedp.WSURLReadTimeout(time.Minute),
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true))...)
	t.Cleanup(cancel)
	// It complains of events that are newer than it.
	ctx, cancel = chromedp.NewContext(ctx, chromedp.WithErrorf(func(string, ...any) {}))
	t.Cleanup(cancel)
	t.Cleanup(func() { _ = chromedp.Cancel(ctx) }) // waits until the browser has ended
	chromedp.ListenTarget(ctx, func(ev any) {
		switch ev := ev.(type) {
		case *runtime.EventExceptionThrown:
			t.Errorf("in the page: %s", ev.ExceptionDetails.Error())
		case *log.EventEntryAdded:
			// A daemon that is gone is among what the page is to bear.
			if ev.Entry.Level == log.LevelError && ev.Entry.Source != log.SourceNetwork {
				t.Errorf("in the page: %s %s", ev.Entry.Text, ev.Entry.URL)
			}
		case *network.EventRequestWillBeSent:
			if u := ev.Request.URL; !strings.HasPrefix(u, "http://127.0.0.1:") && !strings.HasPrefix(u, "data:") {
				t.Errorf("the page asks for %s", u)
			}
		}
	})
	b := &browser{t, ctx}
	b.do(network.Enable(), log.Enable(), chromedp.EmulateViewport(1280, 900))
	return b
}

func (b *browser) do(actions ...chromedp.Action) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		b.t.Fatalf("%v; the page says:\n%s", err, b.textOr("nothing"))
	}
}

func (b *browser) textOr(other string) string {
	var text string
	ctx, cancel := context.WithTimeout(b.ctx, 5*time.Second)
	defer cancel()
	if chromedp.Run(ctx, chromedp.Evaluate("document.body.innerText", &text)) != nil {
		return other
	}
	return text
}

// sees waits until a condition in the page's own language holds.
func (b *browser) sees(what string, args ...any) {
	b.t.Helper()
	what = fmt.Sprintf(what, args...)
	for deadline := time.Now().Add(testenv.Limit(b.t, 30*time.Second)); ; time.Sleep(50 * time.Millisecond) {
		var ok bool
		err := chromedp.Run(b.ctx, chromedp.Evaluate("Boolean("+what+")", &ok)) // fails while a page is loaded
		if ok {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("never %s (%v); the page says:\n%s", what, err, b.textOr("nothing"))
		}
	}
}

// fill gives a field a value, as typing it would.
func (b *browser) fill(name, value string) {
	b.t.Helper()
	b.do(chromedp.Evaluate(fmt.Sprintf("(() => { const e = document.querySelector('[name=%s]'); e.value = %q; e.dispatchEvent(new Event('input', {bubbles: true})) })()", name, value), nil))
}

// press presses the first button, or summary, with that text.
func (b *browser) press(text string) {
	b.t.Helper()
	b.do(chromedp.Evaluate(fmt.Sprintf("[...document.querySelectorAll('button, summary')].find((e) => e.textContent === %q).click()", text), nil))
}

// says waits until the main part has that text.
func (b *browser) says(text string) {
	b.t.Helper()
	b.sees("document.getElementById('main').innerText.includes(%q)", text)
}

// view goes to a view and waits until it is there.
func (b *browser) view(hash, title string) {
	b.t.Helper()
	b.do(chromedp.Evaluate(fmt.Sprintf("location.hash = %q", hash), nil))
	b.sees("document.querySelector('h1')?.textContent === %q", title)
}

func (b *browser) value(expression string, to any) {
	b.t.Helper()
	b.do(chromedp.Evaluate(expression, to))
}

// scheme makes the browser prefer light or dark.
func (b *browser) scheme(name string) {
	b.do(emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}}))
}

func (b *browser) width(px int64) { b.do(chromedp.EmulateViewport(px, 844)) }

// shoot keeps a picture of what is seen, where someone wants to look at it.
func (b *browser) shoot(name string) {
	dir := os.Getenv(screenshotsEnv)
	if dir == "" {
		return
	}
	var png []byte
	b.do(chromedp.FullScreenshot(&png, 100))
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// accessible has axe-core look for what keeps people out: nothing may be found.
func (b *browser) accessible(where string) {
	b.t.Helper()
	path := os.Getenv(axeEnv)
	if path == "" {
		return // open's caller has skipped, or not asked
	}
	source, err := os.ReadFile(path)
	if err != nil {
		b.t.Fatal(err)
	}
	var found string
	b.do(chromedp.Evaluate("typeof axe === 'undefined' && "+"("+fmt.Sprintf("(0, eval)(%s)", quote(string(source)))+", 0)", nil),
		chromedp.Evaluate(`axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']}).then((r) =>
			r.violations.map((v) => v.id + ': ' + v.help + ': ' + v.nodes.map((n) => n.html + ' ' + n.failureSummary).join(' | ')).join('\n'))`, &found, func(p *runtime.EvaluateParams) *runtime.EvaluateParams {
			return p.WithAwaitPromise(true)
		}))
	if found != "" {
		b.t.Errorf("%s: axe finds\n%s", where, found)
	}
}

func quote(s string) string {
	b, _ := json.Marshal(s) // a string
	return string(b)
}
