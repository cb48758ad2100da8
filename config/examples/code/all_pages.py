"""All items of a list that comes in pages, by the requests of the code itself: the node needs `runtime: {fetch: true}`.

params: {"url": "https://api.example/items", "credential": null}
"""

MOST = 50  # pages


def run(params, context, fetch, log):
    items, page = [], 1
    while page <= MOST:
        answer = fetch(f"{params['url']}?page={page}", credential=params.get("credential"))
        if not answer.ok:
            raise RuntimeError(f"page {page} answered {answer.status}: {answer.text()[:200]}")
        found = answer.json()
        items += found
        log(f"page {page}: {len(found)} items")
        if not found:
            break
        page += 1
    return items
