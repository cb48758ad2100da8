"""The text of an HTML page, and where its links lead.

params: {"html": "<h1>Hi &amp; bye</h1><script>x()</script><p>See <a href='https://a.example/x'>this</a>.</p>"}
result: {"text": "Hi & bye\nSee this.", "links": ["https://a.example/x"]}
"""

from html.parser import HTMLParser

BLOCKS = {"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6"}


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.parts, self.links, self.hidden = [], [], 0

    def handle_starttag(self, tag, attrs):
        self.hidden += tag in ("script", "style")
        if tag in BLOCKS:
            self.parts.append("\n")
        if tag == "a" and dict(attrs).get("href"):
            self.links.append(dict(attrs)["href"])

    def handle_endtag(self, tag):
        self.hidden -= tag in ("script", "style")

    def handle_data(self, data):
        if not self.hidden:
            self.parts.append(data)


def run(params, context):
    reader = Reader()
    reader.feed(params["html"])
    lines = (" ".join(line.split()) for line in "".join(reader.parts).split("\n"))
    return {"text": "\n".join(line for line in lines if line), "links": reader.links}
