"""chameleon: an HTML table rendered from a template.

The template is compiled to Python code before the server opens, as a web
application would; rendering is what a request pays for.
"""

from hashlib import sha256

from chameleon import PageTemplate
from serve import serve

TEMPLATE = PageTemplate("""
<table xmlns="http://www.w3.org/1999/xhtml" xmlns:tal="http://xml.zope.org/namespaces/tal">
  <tr tal:repeat="row table">
    <td tal:repeat="cell row" tal:content="cell" />
  </tr>
</table>
""")

SIZES = [(60, 10), (10, 60), (50, 12), (70, 8)]  # rows and columns


def render(n):
    rows, columns = SIZES[n - 1]
    table = [[f"{row}:{column}" for column in range(columns)] for row in range(rows)]
    html = TEMPLATE.render(table=table)
    return {
        "rows": html.count("<tr>"),
        "cells": html.count("<td>"),
        "bytes": len(html),
        "sha256": sha256(html.encode()).hexdigest(),
    }


if __name__ == "__main__":
    serve(render, inputs=len(SIZES))
