"""The wording of the generated support dialogues: what customers and agents say. generate.py combines it.

In replies, a "good" table has what the true quality (gold.py) rewards, the "bad" one beside it what it does not.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


REAL_NAMES = _words("""
Aisha Amir Anna Boris Carla Chen Clara Daniel Diego Elena Emma Farid Fatima Felix Freya George Grace Hana Hugo Ines
Ivan Jamal Jonas Julia Kofi Laila Lars Leo Lina Lucia Maria Marta Mateo Mei Milan Mona Nadia Nina Noah Olga Omar Paul
Petra Priya Rafael Rosa Samir Sara Sofia Stefan Tariq Tomas Uma Vera Viktor Wei Yara Yusuf Zoe Zofia
""")
FIRST_SYLLABLES = _words("""
Ar Bel Cor Da Do Fen Gar Hal Is Jo Kel Lo Mar Nor Or Pel Qui Ras Sel Tor Ul Ven Wil Yor Zan
""")
LAST_SYLLABLES = _words("bin da dor fia gan ka len lis mo na ric ro sa the tin va vin wen xa zo")

# Topics as (text, concrete steps that an agent can take). Half are complaints; the others are questions.
COMPLAINTS = (
    ("The {product} does not work.", ("send a new one", "book a repair")),
    ("The {product} came with a crack.", ("send a new one", "collect the old one")),
    ("The {product} has not come.", ("find the parcel", "send a new one")),
    ("A part of the {product} is missing.", ("send the part", "find the part")),
    ("The {product} has the wrong colour.", ("send a new one", "collect the old one")),
    ("I paid twice for the {product}.", ("return the money", "check the bill")),
    ("The {product} makes a terrible noise.", ("book a repair", "send a new one")),
    ("I returned the {product} and got no money.", ("return the money", "check the bill")),
)
QUESTIONS = (
    ("How do I clean the {product}?", ("send the guide", "email the guide")),
    ("How long is the warranty of the {product}?", ("check the warranty", "email the guide")),
    ("Can you send the {product} to another address?", ("change the address", "find the parcel")),
    ("Can I get a bill for the {product}?", ("email the bill", "send the bill")),
    ("Can the {product} be a gift?", ("wrap the gift", "pack the gift")),
    ("Do you sell parts for the {product}?", ("email the list", "check the list")),
    ("Can I still cancel the {product}?", ("cancel the order", "find the parcel")),
    ("Is the {product} safe for children?", ("check the guide", "email the guide")),
)

NAME_FIRST = ("Hi, I am {name}.", "Hello, my name is {name}.", "Hello, this is {name}.")
NAME_LAST = ("Thanks, {name}.", "Regards, {name}.", "Yours, {name}.")
ORDER_LINES = ("My order number is {order}.", "It was order {order}.", "The order is {order}.", "See order {order}.")
ASIDES = (
    "The {other} that I have is fine.",
    "My sister has the {other} from you.",
    "I like the {other} in your shop.",
    "My friend {friend} told me to write.",
)
COMPLAINT_ENDINGS = ("I am not happy.", "This is not good.", "I want this to be made right.")
QUESTION_ENDINGS = ("Please let me know.", "I wait for your answer.", "It is good to know.")

GREET_GOOD = ("Hello {name},", "Hi {name},", "Dear {name},")
GREET_BAD = ("Hello,", "Dear customer,", "Hi there,")
GREET_WRONG = ("Hello {friend},", "Dear {friend},")
OPENERS = ("thank you for your message.", "thanks for writing to us.", "we got your message.")

TAKES_UP = (
    "This is about {product} from {order}.",
    "I looked at {order} with {product}.",
    "I see {product} in {order}.",
)
PRODUCT_VAGUE = ("the item", "the thing", "your purchase")
ORDER_VAGUE = ("your order", "an older order", "the order that you made")

APOLOGY = (
    "I am sorry for the trouble.",
    "We are very sorry about this.",
    "I apologise for what happened.",
)
NO_APOLOGY = (
    "I am happy to help you here.",
    "I can help you with this one.",
    "This is a thing we know well.",
)

STEP_GOOD = (
    "I will {step} {when}.",
    "We will {step} {when}.",
    "{When} I will {step}.",
)
WHEN = (
    "today",
    "tomorrow",
    "this afternoon",
    "on Monday",
    "on Friday",
    "within two days",
)
STEP_BAD = (
    "Somebody may {step}.",
    "Perhaps we can {step}.",
    "It is possible to {step}.",
)

BLAME = (
    "You should have read it.",
    "It is the fault of the driver.",
    "Our packers are careless.",
    "You must have done it wrong.",
)
WANDERING = (
    "By the way, it rains here.",
    "That reminds me of my cat.",
    "Funny story, I lost my hat.",
    "On another note, we had cake.",
)
CUT_OFF = ("It is good to know that the", "And then there is the", "What I wanted to say is")
FILLERS = (
    "Our shop is open all week.",
    "Your message is with our team.",
    "Every message is read by a person.",
    "It is good that you wrote to us.",
    "Many people like to shop with us.",
    "Our team is glad to hear from you.",
)
CLOSINGS = (
    "Kind regards, your support team.",
    "Best wishes from the team.",
    "Have a nice day.",
)
