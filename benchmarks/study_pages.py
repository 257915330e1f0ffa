"""pages: placeholder"""


def write_pages(cells, results, planned):
    pass
