"""How other routers choose, written from their sources and in our terms, to be measured beside ours in one program.

Each sees what ours sees, of which most of the originals see less: prefix caches are known from events and from prompts
on the way, and load is counted from the moment of the choice. So what is compared is the choice alone.
"""
